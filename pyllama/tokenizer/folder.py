"""Tokenizers of model folders: which file is read, and what the files beside it add.

Hugging Face folders go by the rules of transformers' AutoTokenizer (5.24): tokenizer.json before tokenizer.model,
its post-processor before add_bos_token, flags of tokenizer_config.json before those of tokenizer.json, and the class
LlamaTokenizer replaces the steps of a SentencePiece tokenizer.json by its own. In one thing they do not: a folder with
nothing but tokenizer.model is read as the `sentencepiece` library reads it, with a BOS unless add_bos_token says
otherwise. AutoTokenizer's LlamaTokenizer makes up merges in id order there, gives other ids for runs of spaces than
the ones the model was trained on, and leaves BOS out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllama.checkpoint.foreign import HEAD_NBYTES, described_bytes
from pyllama.errors import TokenizerError, reason_of
from pyllama.strict_json import check_items
from pyllama.tokenizer import chat_template as templates
from pyllama.tokenizer import steps, tiktoken
from pyllama.tokenizer.added_tokens import AddedToken
from pyllama.tokenizer.chat_template import ChatTemplate
from pyllama.tokenizer.files import read_whole
from pyllama.tokenizer.missing import NoTokenizerError
from pyllama.tokenizer.pieces import from_pieces
from pyllama.tokenizer.sentencepiece_model import read_pieces
from pyllama.tokenizer.tokenizer import Parts
from pyllama.tokenizer.tokenizer_json import TokenizerJson, added_token

_MAX_JSON = 16 << 20
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LLAMA2_VOCAB = 32000
_LLAMA2_NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def read_huggingface(path: Path, config: Any) -> Parts:
    """The tokenizer of a Hugging Face folder. Raises TokenizerError."""
    _check_fetched(path)
    settings = _json(path / "tokenizer_config.json")
    if (path / "tokenizer.json").is_file():
        parts = _from_json(path, settings, config)
    elif (path / "tokenizer.model").is_file():
        parts = _from_model(path / "tokenizer.model", settings)
    else:
        raise NoTokenizerError(f"{path}: no tokenizer.json and no tokenizer.model{_instead(path)}")
    vocab_size = getattr(config, "vocab_size", None)
    names = _special_names(path, settings)
    if vocab_size is not None:
        parts.drop_beyond(vocab_size)
    named = set(names.values())
    entries = _decoder_entries(settings)
    if "added_tokens_decoder" not in settings and not (path / "tokenizer.json").is_file():
        entries = _older_entries(path, named)
    parts.added = _merged_added(parts, entries, named, vocab_size)
    _set_ends(parts, names, path, config)
    parts.special_texts = names
    parts.chat_template = _template(path, settings, names)
    llama2 = parts.kind == "sentencepiece" and vocab_size == _LLAMA2_VOCAB
    if parts.chat_template is None and llama2 and getattr(config, "model_type", None) == "llama":
        parts.chat_template = ChatTemplate(templates.LLAMA2, _LLAMA2_NAMES | names, "the format of Llama 2")
    return parts


def read_meta(path: Path, config: Any) -> Parts:
    """The tokenizer of one of Meta's folders: tokenizer.model in it, or beside it as Meta ships it."""
    file = next((f for f in (path / "tokenizer.model", path.parent / "tokenizer.model") if f.is_file()), None)
    if file is None:
        raise NoTokenizerError(f"{path}: no tokenizer.model in the folder or above it")
    _check_fetched(file.parent)
    parts = _from_model(file, {})
    if parts.kind == "tiktoken":
        parts.special_texts = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        parts.chat_template = ChatTemplate(templates.LLAMA3, parts.special_texts, "the format of Llama 3")
    else:
        parts.special_texts = _LLAMA2_NAMES
        parts.chat_template = ChatTemplate(templates.LLAMA2, _LLAMA2_NAMES, "the format of Llama 2")
    return parts


def special_names(path: Path) -> dict[str, str]:
    """What a Hugging Face folder calls its bos_token, eos_token, pad_token and so on. Raises TokenizerError."""
    return _special_names(path, _json(path / "tokenizer_config.json"))


def _check_fetched(folder: Path) -> None:
    """Raise TokenizerError for a file that is not itself: a pointer to it, a web page, nothing."""
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        try:
            with open(folder / name, "rb") as file:
                head = file.read(HEAD_NBYTES)
        except OSError:
            continue  # whoever needs it says so
        what = described_bytes(head, len(head)) if name != "chat_template.jinja" else None
        if what or head.startswith(b"version https://git-lfs"):
            raise TokenizerError(f"{folder / name}: {what or 'a Git LFS pointer, not the file it stands for'}")


def _instead(folder: Path) -> str:
    """Which files of other tokenizers are there, and what makes tokenizer.json of them."""
    for names, advice in (
        (("vocab.json", "merges.txt"), "; AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers "
         "makes one of vocab.json and merges.txt"),
        (("tekken.json",), ", and tekken.json is not read; get tokenizer.json of the same model"),
        (("vocab.txt",), ", and vocab.txt is not read; get tokenizer.json of the same model"),
    ):  # fmt: skip
        if all((folder / name).is_file() for name in names):
            return advice
    versions = sorted(path.name for path in folder.glob("tokenizer.model.v*"))
    if versions:
        return f"; {versions[-1]} is one under another name"
    return "; get one from where the model is from"


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file."""
    try:
        if not path.is_file():
            return {}
        data = read_whole(path, _MAX_JSON)
        check_items(data, str(path), TokenizerError)
        value = json.loads(data.decode())
    except OSError as error:
        raise TokenizerError(f"{path}: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: bad JSON: {str(error)[:100] or 'nested too deeply'}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: {type(value).__name__}, expected an object")
    return value


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise TokenizerError(f"tokenizer_config.json: {key} is {str(value)[:40]!r}, expected true or false")
    return value


def _from_json(path: Path, settings: Mapping[str, Any], config: Any) -> Parts:
    file = TokenizerJson(path / "tokenizer.json")
    metaspace = None
    name = settings.get("tokenizer_class")
    llama = isinstance(name, str) and name.removesuffix("Fast") == "LlamaTokenizer"
    if llama and not file.byte_level and getattr(config, "model_type", "llama") == "llama":
        metaspace = "always" if _flag(settings, "legacy", False) else "first"
    return file.parts(metaspace=metaspace)


def _from_model(path: Path, settings: Mapping[str, Any]) -> Parts:
    if tiktoken.is_tiktoken(path):
        entries = _decoder_entries(settings)
        return tiktoken.read(path, tuple(entries.values()) or None)
    pieces = read_pieces(path)
    parts = from_pieces(pieces, path.name)
    if pieces.space_prefix and not pieces.charsmap and not _flag(settings, "legacy", True):
        parts.pre_tokenizer = steps.metaspace("first", False)
        parts.normalizer = None
    parts.bos_token_id = pieces.bos_id
    if pieces.eos_id is not None:
        parts.eos_token_ids = (pieces.eos_id,)
    if pieces.bos_id is not None and _flag(settings, "add_bos_token", True):
        parts.before = (pieces.bos_id,)
    if pieces.eos_id is not None and _flag(settings, "add_eos_token", False):
        parts.after = (pieces.eos_id,)
    return parts


def _special_names(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and so on, as text."""
    names: dict[str, str] = {}
    older = _json(path / "special_tokens_map.json")
    for key in _NAMED:
        value = settings.get(key, older.get(key) if "added_tokens_decoder" not in settings else None)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and value:
            names[key] = value
        elif value is not None and value != "":
            raise TokenizerError(f"tokenizer_config.json: {key} is {str(value)[:40]!r}, expected a string")
    return names


def _older_entries(path: Path, named: set[str]) -> dict[int, AddedToken]:
    """added_tokens.json: {content: id}; tokenizers that have no added_tokens_decoder keep theirs there."""
    found: dict[int, AddedToken] = {}
    for content, token_id in _json(path / "added_tokens.json").items():
        special = content in named
        entry = {"content": content, "special": special, "normalized": not special}
        token = added_token(token_id, entry, "added_tokens.json")
        found[token.id] = token
    return found


def _decoder_entries(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """added_tokens_decoder: {"id": {content, flags}}."""
    entries = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict) or len(entries) > 1 << 16:
        raise TokenizerError("tokenizer_config.json: added_tokens_decoder, expected an object of tokens")
    found: dict[int, AddedToken] = {}
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not key.isascii() or not key.isdigit() or len(key) > 7:
            raise TokenizerError(
                f"tokenizer_config.json: added_tokens_decoder: {key[:40]!r}, expected an id and a token"
            )
        found[int(key)] = added_token(int(key), entry, "tokenizer_config.json: added_tokens_decoder")
    return found


def _merged_added(
    parts: Parts, entries: Mapping[int, AddedToken], named: set[str], vocab_size: int | None
) -> tuple[AddedToken, ...]:
    """The added tokens with the flags of tokenizer_config.json; the named ones are special.

    New tokens of that file get the next free id, as in transformers, so a file that says another is refused. What
    lies beyond the model's vocabulary has no row there and stays out.
    """
    added = {token.content: token for token in parts.added}
    free = parts.size

    def present_id(content: str) -> int:
        known = added.get(content)
        found = known.id if known else parts.vocabulary.find(content.encode("utf-8", "replace"))
        return found if found < parts.size else -1

    for token_id, entry in sorted(entries.items()):
        present = present_id(entry.content)
        if present < 0 and vocab_size is not None and token_id >= vocab_size:
            continue
        if (present if present >= 0 else free) != token_id:
            raise TokenizerError(
                f"tokenizer_config.json: added_tokens_decoder (or added_tokens.json): {entry.content[:40]!r} has id "
                f"{token_id}, expected {present if present >= 0 else free}"
            )
        free = max(free, token_id + 1)
        added[entry.content] = entry
        parts.decoded[token_id] = entry.content.encode()
    for content in named:
        if content in added:
            added[content] = added[content]._replace(special=True)
        elif (found := present_id(content)) >= 0:
            added[content] = AddedToken(found, content)
            parts.decoded[found] = content.encode()
    return tuple(sorted(added.values(), key=lambda token: token.id))


def _set_ends(parts: Parts, names: Mapping[str, str], path: Path, config: Any) -> None:
    ids = {token.content: token.id for token in parts.added}
    if names.get("bos_token") in ids:
        parts.bos_token_id = ids[names["bos_token"]]
    elif parts.bos_token_id is None:
        parts.bos_token_id = getattr(config, "bos_token_id", None)
    ends = [ids.get(names.get("eos_token", ""))]
    ends += getattr(config, "eos_token_ids", None) or ()
    generation = _json(path / "generation_config.json").get("eos_token_id")
    for token_id in generation if isinstance(generation, list) else [generation]:
        if token_id is not None and type(token_id) is not int:
            raise TokenizerError(f"generation_config.json: eos_token_id {str(generation)[:40]}, expected token ids")
        ends.append(token_id)
    ends += parts.eos_token_ids
    parts.eos_token_ids = tuple(dict.fromkeys(end for end in ends if end is not None))


def read_template(file: Path, names: Mapping[str, str]) -> ChatTemplate:
    """A file's template; names: what it sees besides messages. Raises TokenizerError."""
    try:
        return ChatTemplate(read_whole(file, _MAX_JSON).decode(), names, file.name)
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file}: no UTF-8: {error.reason}") from None


def _template(path: Path, settings: Mapping[str, Any], names: Mapping[str, str]) -> ChatTemplate | None:
    """chat_template.jinja, or chat_template of tokenizer_config.json: a text, or named texts of which "default"."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return read_template(file, names)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise TokenizerError("tokenizer_config.json: chat_template, expected a text or a list of named texts")
    return ChatTemplate(template, names, "tokenizer_config.json")
