"""Wheels in, complaints out: what every wheel of pyllama must hold, whatever it was built on.

    python tools/check_wheel.py WHEEL...          in a clone: git says which files belong to the package

A wheel holds the package's tracked files, one extension module in place of its sources, and no more; it is
small; and its extension takes no transcendental function from libm, whose last bit differs between machines.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_NBYTES = 1_600_000
#: What IEEE 754 does not define to the last bit.
LIBM = re.compile(r"(exp|exp2|expm1|log|log2|log10|log1p|pow|sin|cos|tan|sincos|sinh|cosh|tanh|erf|cbrt|hypot)[fl]?")
EXTENSION = re.compile(r"pyllama/_kernels\.abi3\.so")


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "pyllama"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split() if not name.endswith((".c", ".h", ".pyx", ".pxd"))}


def complaints(path: Path) -> list[str]:
    found = []
    if path.stat().st_size > MAX_NBYTES:
        found.append(f"{path.stat().st_size} bytes, expected at most {MAX_NBYTES}")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if re.match("pyllama/.*[^/]$", name)}
        extensions = {name for name in names if EXTENSION.fullmatch(name)}
        libm = {name for one in extensions for name in imported(wheel.read(one)) if LIBM.fullmatch(name)}
    if len(extensions) != 1:
        found.append(f"{len(extensions)} extension modules, expected pyllama/_kernels.abi3.so")
    found += [f"{name}: missing" for name in sorted(tracked() - names)]
    found += [f"{name}: does not belong here" for name in sorted(names - extensions - tracked())]
    found += [f"{name}: taken from libm, whose last bit differs between machines" for name in sorted(libm)]
    return found


def imported(extension: bytes) -> set[str]:
    """Names of the symbols that a shared object leaves to others to define; of any architecture."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(extension)
        file.flush()
        command = ["readelf", "--dyn-syms", "--wide", file.name]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[7].split("@")[0] for line in listed.splitlines() if " UND " in line and line.split()[7:]}


def main() -> int:
    status = 0
    for argument in sys.argv[1:]:
        path = Path(argument)
        found = complaints(path)
        for line in found:
            print(f"{path.name}: {line}", file=sys.stderr)
        print(f"{path.name}: {path.stat().st_size} bytes")
        status |= bool(found)
    return status


if __name__ == "__main__":
    sys.exit(main())
