#!/bin/bash
# Print the one line of the README's fenced commands that holds a text, so that CI runs what the README says.
#
# usage: tools/readme_command.sh TEXT
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t lines < <(awk '/^```/ { fenced = !fenced; next } fenced' README.md | grep -F -- "$1")
if [ ${#lines[@]} -ne 1 ]; then
    echo "README.md: ${#lines[@]} commands hold \"$1\", expected one" >&2
    exit 1
fi
echo "${lines[0]}"
