"""The files a service must be able to read: the interpreter, the packages it imports, the model."""

import importlib.util
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pyllama.errors import RequestError

if TYPE_CHECKING:
    from pyllama.checkpoint import Checkpoint

PACKAGES = (
    "pyllama",
    "numpy",
    "jinja2",
    "markupsafe",
    "starlette",
    "anyio",
    "idna",
    "uvicorn",
    "click",
    "h11",
    "prometheus_client",
    "llguidance",
    "typing_extensions",
)
#: What a system service sees nothing of, unless it is shown.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")


def package_folders() -> list[Path]:
    """Folders that must be on the path of a Python started elsewhere, for it to find what this one found."""
    folders: dict[Path, None] = {}
    own = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            continue
        origin = Path(spec.origin).resolve()
        folder = origin.parent.parent if spec.submodule_search_locations else origin.parent
        if not any(folder.is_relative_to(prefix) for prefix in own):
            folders[folder] = None
    return list(folders)


def python_folders() -> list[Path]:
    """Where the interpreter and its libraries lie."""
    found = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.base_exec_prefix)}
    return sorted(found | {path.resolve() for path in found})


def model_paths(checkpoint: "Checkpoint") -> list[Path]:
    """A model's folder, or its files, and where links from there lead (the Hugging Face cache is made of them)."""
    path = Path(os.path.abspath(checkpoint.path))
    entries = sorted(path.iterdir()) if path.is_dir() else [Path(os.path.abspath(file)) for file in checkpoint.files]
    found = [path] if path.is_dir() else entries
    targets = {entry.resolve() for entry in entries if entry.resolve() != entry}
    outside = {target for target in targets if not any(target.is_relative_to(base) for base in found)}
    return [*found, *sorted({target.parent for target in outside})]


def hidden(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that a system service would not see, each once, none inside another."""
    inside = [path for path in dict.fromkeys(paths) if any(path.is_relative_to(folder) for folder in HIDDEN)]
    return [path for path in inside if not any(path != other and path.is_relative_to(other) for other in inside)]


def check_readable(paths: Iterable[Path]) -> None:
    """Raises RequestError for the first file that only its owner may read: the service is another user.

    The folders above are not looked at: they are shown to the service as far as they lead to the paths.
    """
    for path in paths:
        files = [path, *path.iterdir()] if path.is_dir() else [path]
        for file in files:
            mode = file.stat().st_mode
            needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
            if mode & needed != needed:
                raise RequestError(
                    f"{file}: mode {stat.S_IMODE(mode):o}, but the service runs as a user of its own; "
                    f"chmod -R o+rX {path}, or --user"
                )
