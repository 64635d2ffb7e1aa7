#!/bin/bash
# Build the kernels with AddressSanitizer and UndefinedBehaviorSanitizer and run tests with them.
#
# usage: tools/sanitize.sh WORKDIR SDIST PYTHON [PYTEST ARGUMENT]...      default: the tests of the kernels
set -euo pipefail
work=$(realpath -m "$1") sdist=$(realpath "$2") python=$3
shift 3
[ $# -gt 0 ] || set -- tests/kernels
rm -rf "$work" && mkdir -p "$work/source" && cd "$work"
tar -xzf "$sdist" -C source --strip-components=1
"$python" -m venv venv
PYLLAMA_SANITIZE=address,undefined PYLLAMA_WERROR=1 venv/bin/pip install -q "./source[test]"
rm -rf source/pyllama
# The interpreter itself is not instrumented: the runtime comes first by LD_PRELOAD, and CPython's own leaks at
# exit are none of ours. UBSan's errors end the process too (-fno-sanitize-recover).
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
cd source
../venv/bin/python -P -m pytest -q -p no:cacheprovider "$@"
