"""A measurement in a process of its own, so that its peak resident set is its own: JSON in, JSON out."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from pyllama.errors import PyllamaError


def in_own_process(module: str, path: Path, **options: Any) -> dict[str, Any]:
    """What measure() of a module beside this one gives. Raises PyllamaError with that process's last line."""
    # The same package, wherever this one was found; behind the standard library, where site-packages belong.
    code = (
        "import sys; sys.path.append(sys.argv.pop(1)); from pyllama.measure.own_process import main; sys.exit(main())"
    )
    # -P: or a folder called pyllama where the user stands, such as a clone's, would be imported in its place.
    command = [sys.executable, "-P", "-c", code]
    command += [str(Path(__file__).parents[2]), module, json.dumps([str(path), options])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PyllamaError(f"bench: {last.removeprefix('pyllama: ')}")
    return json.loads(done.stdout)


def main() -> int:
    """That process: the module's name and what to measure are its arguments."""
    try:
        path, options = json.loads(sys.argv[2])
        print(json.dumps(import_module(f"pyllama.measure.{sys.argv[1]}").measure(path, **options)))
    except PyllamaError as error:
        print(f"pyllama: {error}", file=sys.stderr)
        return 2
    return 0
