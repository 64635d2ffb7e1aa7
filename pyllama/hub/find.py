"""What a person gives for MODEL becomes a path on this machine, without the network.

Imports no HTTP client: every command pays for this file. Checks that a model's
files are all there, not what is in them.
"""

import json
import os
from pathlib import Path

from pyllama.errors import HubError
from pyllama.hub.cache import Repository, xdg_cache
from pyllama.hub.choose import INDEX, has_quantization, missing_parts, split_groups
from pyllama.hub.names import DEMO, ModelName, parse_name

DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INDEX_LIMIT = 64 << 20  # bytes; the largest published index is under 10 MB


class NotInCacheError(HubError):
    """A sound name whose files are not here, or not all of them: a pull would help."""


def resolve(name: str | os.PathLike[str]) -> Path:
    """A path that exists is itself; `smollm2` is the demo; `org/name` is looked up in the Hub's cache.

    Raises HubError: for a model that is not in the cache (NotInCacheError) it
    says which command fetches it. Costs a few file system calls.
    """
    text = os.fspath(name)
    if not text:
        raise HubError(f"an empty text for a model, expected a path or a name (org/name, or {DEMO})")
    path = Path(name)
    if path.exists():
        return path
    if text == DEMO:
        return _demo(demo_path())
    if text.startswith(("/", "./", "../", "~")) or text.count("/") > 1 and "@" not in text or text.endswith(".gguf"):
        raise HubError(f"{text}: no such file or folder{_instead(text)}")
    try:
        model = parse_name(text)
    except HubError as error:
        raise HubError(
            f"{text}: no such file or folder, and no model's name (org/name, or {DEMO}){_instead(text)}"
        ) from error
    try:
        return find(model)
    except NotInCacheError as error:
        # A path that is not there looks like a name too, and so does a name in another case.
        hint = _instead(text)
        raise NotInCacheError(f"{error}{hint}") if hint else error from None


def named(text: str) -> ModelName:
    """parse_name(), where the message also says what may have been meant."""
    try:
        return parse_name(text)
    except HubError as error:
        there = "; it is a path here, and needs no pull" if os.path.exists(text) else _instead(text)
        raise HubError(f"{error}{there}") from None


def _instead(text: str) -> str:
    from pyllama.hub.meant import instead

    return instead(text)


def demo_path() -> Path:
    return Path(xdg_cache()) / "pyllama" / DEMO_FILE


def find(model: ModelName) -> Path:
    """Where the cache holds a whole model: a folder, or the first GGUF file; else NotInCacheError."""
    repository = Repository(model.repository)
    commit = repository.commit(model.revision)
    snapshot = repository.snapshot(commit) if commit else None
    if snapshot is None or not snapshot.is_dir():
        raise NotInCacheError(f"{model}: not in the cache ({repository.cache}): pyllama pull {model}")
    if model.quantization is None:
        folder = _safetensors(model, snapshot) or _original(snapshot)
        if folder is not None:
            return folder
    return _gguf(model, snapshot)


def read_shards(index: Path) -> set[str]:
    """The file names in a safetensors index; HubError if it is none."""
    try:
        if index.stat().st_size > INDEX_LIMIT:
            raise HubError(f"{index}: larger than {INDEX_LIMIT} bytes, no index is")
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HubError(f"{index}: expected JSON with a weight_map from tensor to file name") from error
    if not all(isinstance(shard, str) for shard in shards):
        raise HubError(f"{index}: weight_map holds something other than file names")
    return shards


def _safetensors(model: ModelName, snapshot: Path) -> Path | None:
    index = snapshot / INDEX
    if index.exists():
        wanted = read_shards(index)
        missing = sorted(shard for shard in wanted if not (snapshot / shard).exists())
        if len(missing) == len(wanted) and list(snapshot.glob("*.gguf")):
            return None  # only the settings came along with the GGUF files
        _refuse(model, missing)
        return snapshot
    files = [path.name for path in snapshot.glob("*.safetensors") if path.exists()]
    for group in split_groups(files).values():
        _refuse(model, missing_parts(group))
    return snapshot if files else None


def _original(snapshot: Path) -> Path | None:
    folder = snapshot / "original"
    return folder if (folder / "params.json").exists() and any(folder.glob("consolidated.*.pth")) else None


def _gguf(model: ModelName, snapshot: Path) -> Path:
    there = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf") if path.exists()]
    files = there
    if model.quantization:
        files = [file for file in files if has_quantization(file, model.quantization)]
    groups = split_groups(file for file in files if "mmproj" not in file)
    if not groups:
        others = f" (there are {', '.join(sorted(there)[:4])})" if there else ""
        raise NotInCacheError(f"{model}: its weights are not in the cache ({snapshot}){others}: pyllama pull {model}")
    if len(groups) > 1:
        raise HubError(
            f"{model}: several GGUF files in the cache, give the path of one: {', '.join(groups)} in {snapshot}"
        )
    (group,) = groups.values()
    _refuse(model, missing_parts(group))
    return snapshot / group[0]


def _refuse(model: ModelName, missing: list[str]) -> None:
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise NotInCacheError(f"{model}: the cache lacks {missing[0]}{more}: pyllama pull {model}")


def _demo(path: Path) -> Path:
    if not path.is_file():
        raise NotInCacheError(f"{DEMO}: not in the cache ({path.parent}): pyllama pull {DEMO}")
    return path
