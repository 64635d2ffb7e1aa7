"""What a person meant who gave a MODEL that is neither a path nor a name: for the end of the complaint.

Looks at folders on the way to a path and at the names in the Hub's cache; fetches nothing.
"""

import os
import re
from pathlib import Path

from pyllama.errors import HubError
from pyllama.hub.cache import hub_cache
from pyllama.hub.choose import QUANTIZATION
from pyllama.hub.names import DEMO, parse_name

MAX_ENTRIES = 4096  # of a folder that is looked through
SHOWN = 3

# A repository's address in a browser: /tree/REVISION, /blob/REVISION/FILE and /resolve/REVISION/FILE lead into it.
# Ollama's form of it is hf.co/org/name:QUANTIZATION.
_ADDRESS = re.compile(
    r"(?:[a-z][a-z0-9+.-]*://|git@)?(?:[^/:@]+@)?(?:[a-z0-9-]+\.)+[a-z]{2,10}(?::[0-9]+)?[/:](?:models/)?"
    r"(?P<name>[^/:?#]+/[^/?#:]+)(?::(?P<quantization>\w+))?"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+))?(?:/(?P<file>[^?#]+))?/?(?:[?#].*)?",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?:hf|hf\.co|huggingface|hub|model)://(?P<name>[^/]+/[^/]+)/?", re.IGNORECASE)
_OLLAMA = re.compile(r"[a-z][a-z0-9.-]*(?::[a-z0-9._-]+)?")


def instead(text: str) -> str:
    """What to give instead, as it goes on after a message; "" where there is no telling."""
    stripped = text.strip().strip("'\"")
    if stripped != text and (os.path.exists(stripped) or _is_name(stripped)):
        return f"; without the spaces or quotes around it: {stripped}"
    name = _of_address(stripped)
    if name:
        return f"; an address, expected a name: {name}"
    if stripped.startswith("file://") and os.path.exists(stripped.removeprefix("file://")):
        return f"; expected a path: {stripped.removeprefix('file://')}"
    if stripped.startswith("~") and os.path.exists(os.path.expanduser(stripped)):
        return f"; the shell has left ~ as it is, give {os.path.expanduser(stripped)}"
    return _as_path(stripped) or _as_name(stripped)


def _of_address(text: str) -> str | None:
    """The name that an address of a hub stands for."""
    match = _SCHEME.fullmatch(text) or (None if os.path.exists(text) else _ADDRESS.fullmatch(text))
    if match is None:
        return None
    found = match.groupdict()
    name = found["name"].removesuffix(".git")
    if not _is_name(name):
        return None
    if found.get("quantization"):
        return f"{name}:{found['quantization']}"
    quantization = QUANTIZATION.search(found.get("file") or "")
    if quantization and str(found["file"]).endswith(".gguf"):
        return f"{name}:{quantization[0]}"
    revision = found.get("revision")
    return name if revision in (None, "main") else f"{name}@{revision}"


def _as_path(text: str) -> str:
    """A name that is there beside the one that is not; or where the path ends."""
    base, colon, quantization = text.rpartition(":")
    if colon and os.path.exists(base):
        return f"; {base} is there, and a path takes no {':' + quantization}"
    path = Path(text)
    if "/" not in text and not text.endswith((".gguf", ".safetensors")):
        near = _near(path.name, Path("."))
        return f"; did you mean {near}?" if near else ""
    for parent in path.parents:
        try:
            there = parent.is_dir()
        except OSError:
            return ""
        if there:
            below = path.relative_to(parent).parts[0] if parent != Path(".") else path.parts[0]
            near = _near(below, parent)
            if near:
                return f"; did you mean {Path(near, *path.parts[len(parent.parts) + 1 :])}?"
            return f"; {parent} is there, {below} is not in it" if len(parent.parts) > 0 and len(path.parts) > 1 else ""
    return ""


def _near(name: str, folder: Path) -> str | None:
    """An entry of a folder with nearly that name."""
    names = _entries(folder)
    same = [other for other in names if other.lower() == name.lower()]
    found = same or [other for other in names if other == f"{name}.gguf"] or _nearest(name, names)
    return str(folder / found[0]) if found else None


def _nearest(name: str, names: list[str]) -> list[str]:
    """The name that is this one but for a slip, if there is one."""
    from difflib import get_close_matches

    return get_close_matches(name, names, 1, 0.8)


def _as_name(text: str) -> str:
    """A name in the cache that differs by its case, its spaces or its organization; else what a name looks like."""
    spaceless = re.sub(r"\s*([/:@])\s*", r"\1", text).rstrip("/")
    wanted, _, suffix = spaceless.partition(":")
    cached = [name for name in cached_names() if name != wanted]
    same = [name for name in cached if _letters(name) == _letters(wanted)]
    same = same or [name for name in cached if _letters(name.rpartition("/")[2]) == _letters(wanted)]
    if same:
        return f"; did you mean {' or '.join(name + (':' + suffix if suffix else '') for name in same[:SHOWN])}?"
    if spaceless != text and _is_name(spaceless):
        return f"; did you mean {spaceless}?"
    if re.search(r"\s", spaceless) and _is_name(re.sub(r"\s+", "-", wanted)):
        return "; a name has no spaces"
    parts = spaceless.split("/")
    if len(parts) > 2 and spaceless.endswith(".gguf") and _is_name("/".join(parts[:2])):
        quantization = QUANTIZATION.search(parts[-1])
        how = f"{parts[0]}/{parts[1]}:{quantization[0] if quantization else 'QUANTIZATION'}"
        return f"; a file of a repository is named by its quantization: {how}"
    if wanted and wanted != DEMO and _nearest(wanted.lower(), [DEMO]):
        return f"; did you mean {DEMO}?"
    if "/" not in text and not text.endswith(".gguf") and _OLLAMA.fullmatch(text) and text != DEMO:
        return f"; the hub's names have an organization: org/{wanted}" if wanted else ""
    return ""


def _letters(name: str) -> str:
    """Without what is easily mistaken: case, spaces, and what joins words."""
    return re.sub(r"[\s_-]+", "", name).lower()


def cached_names() -> list[str]:
    """org/name of every repository in the Hub's cache."""
    names = _entries(hub_cache())
    return sorted(name.removeprefix("models--").replace("--", "/") for name in names if name.startswith("models--"))


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)[:MAX_ENTRIES]
    except OSError:
        return []


def _is_name(text: str) -> bool:
    try:
        parse_name(text)
    except HubError:
        return False
    return True
