"""A repository's list of files becomes the few that pyllama needs of it.

Knows names only; has no idea where the files are or what they hold.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from pyllama.errors import HubError
from pyllama.hub.names import ModelName

INDEX = "model.safetensors.index.json"
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "params.json",  # these two: packed from Meta's form and from GGUF
    "tokenizer.gguf",
)
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,6})-of-(?P<count>\d{5,6})(?P<suffix>\.\w+)")
QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:UD-)?I?T?Q\d\w*|BF16|F16|F32|MXFP4\w*)(?![A-Za-z0-9_])", re.IGNORECASE
)
_NAMES_SHOWN = 12


def settings_files(files: Iterable[str]) -> list[str]:
    """Config, tokenizer and template: what every pull takes, and all that is small."""
    there = set(files)
    return [name for name in SETTINGS if name in there]


def weight_files(
    name: ModelName, files: Sequence[str], patterns: Sequence[str], read_shards: Callable[[], Iterable[str]]
) -> list[str]:
    """The files holding the weights, in order.

    patterns     shell patterns over whole paths; given, they alone decide
    read_shards  the files that INDEX names; called only if the choice hangs on it

    Safetensors if there are any, else GGUF: of the quantization the name asks
    for, or the only one there is. Raises HubError, saying how to choose.
    """
    if patterns:
        return _by_pattern(name, files, patterns)
    gguf = [file for file in files if file.endswith(".gguf") and "mmproj" not in file]
    if name.quantization:
        return _by_quantization(name, gguf)
    if INDEX in files:
        return _shards(name, files, read_shards())
    top = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    if "model.safetensors" in top:
        return ["model.safetensors"]
    if top:
        return sorted(top)
    if len(split_groups(gguf)) > 1:
        raise HubError(
            f"{name}: holds several GGUF files, say which: pyllama pull {name}:QUANTIZATION "
            f"({_quantizations(gguf)}), or --file PATTERN"
        )
    if gguf:
        return _whole_group(name, gguf)
    raise HubError(f"{name}: holds no safetensors and no GGUF weights{_otherwise(files)}")


def split_groups(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by what they are parts of: a single file is a group of its own; each group in order."""
    groups: dict[str, list[str]] = {}
    for file in sorted(files):
        match = _SPLIT.fullmatch(file)
        groups.setdefault(match["stem"] + match["suffix"] if match else file, []).append(file)
    return groups


def missing_parts(group: Sequence[str]) -> list[str]:
    """The names that would make a split group whole."""
    match = _SPLIT.fullmatch(group[0])
    if match is None:
        return []
    width, count = len(match["number"]), int(match["count"])
    if count > 9999:  # no model has as many; a name alone must not make us build a list of a million
        return [f"{count - len(group)} more parts"]
    wanted = [
        f"{match['stem']}-{number:0{width}d}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)
    ]
    there = set(group)
    return [part for part in wanted if part not in there]


def has_quantization(file: str, quantization: str) -> bool:
    """Q4_K is in model-Q4_K.gguf and Q4_K/model.gguf, not in model-Q4_K_M.gguf or model-IQ4_K.gguf."""
    pattern = rf"(?<![A-Za-z0-9]){re.escape(quantization)}(?![A-Za-z0-9_])"
    return re.search(pattern, file, re.IGNORECASE) is not None


def _by_pattern(name: ModelName, files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        matching = [file for file in files if fnmatchcase(file, pattern)]
        if not matching:
            raise HubError(f"{name}: no file matches {pattern!r}; there are: {_some(sorted(files))}")
        chosen.update(matching)
    return sorted(chosen)


def _by_quantization(name: ModelName, gguf: Sequence[str]) -> list[str]:
    matching = [file for file in gguf if has_quantization(file, str(name.quantization))]
    if not matching:
        there = f"there are: {_quantizations(gguf)}" if gguf else "it holds no GGUF file at all"
        raise HubError(f"{name}: no GGUF file of quantization {name.quantization}; {there}")
    if len(split_groups(matching)) > 1:
        raise HubError(f"{name}: several GGUF files match, choose one by --file: {_some(matching)}")
    return _whole_group(name, matching)


def _whole_group(name: ModelName, group: Sequence[str]) -> list[str]:
    missing = missing_parts(sorted(group))
    if missing:
        raise HubError(f"{name}: the repository lacks {_some(missing)}")
    return sorted(group)


def _shards(name: ModelName, files: Sequence[str], shards: Iterable[str]) -> list[str]:
    there = set(files)
    wanted = sorted(set(shards))
    missing = [shard for shard in wanted if shard not in there]
    if missing or not wanted:
        raise HubError(f"{name}: {INDEX} names {_some(missing) or 'no files'}, which the repository does not hold")
    return wanted


def _otherwise(files: Iterable[str]) -> str:
    there = set(files)
    if any(fnmatchcase(file, "original/consolidated.*.pth") for file in there):
        return ", but Meta's original files: add --file 'original/*'"
    pickles = sorted(file for file in there if file.endswith((".bin", ".pth", ".pt")))
    return f" (only {_some(pickles)}, which pyllama does not read)" if pickles else ""


def _quantizations(gguf: Iterable[str]) -> str:
    found = sorted({match[0].upper() for file in gguf for match in QUANTIZATION.finditer(file.removesuffix(".gguf"))})
    return ", ".join(found[:24]) or _some(sorted(gguf))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(repr(name)[1:-1] for name in names[:_NAMES_SHOWN]) + more
