"""tokenizer.json to the parts of a tokenizer: byte-level BPE, and SentencePiece's BPE as tokenizers writes it.

Each step of the file is matched by its name and every field of it looked at; what is not known here is refused by
name, never skipped. Rules of the other files of a folder (tokenizer_config.json) are not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer import pattern as patterns
from pyllama.tokenizer import steps, token_bytes
from pyllama.tokenizer.added_tokens import AddedToken
from pyllama.tokenizer.bpe import ByteLevelModel, MergedModel
from pyllama.tokenizer.json_scan import TokenizerFile
from pyllama.tokenizer.sentencepiece import SentencePieceModel, byte_pieces
from pyllama.tokenizer.tokenizer import Parts
from pyllama.tokenizer.vocabulary import MAX_TOKENS, Vocabulary

_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
#: What each step may say; steps that are not here are refused by name.
_FIELDS = {
    "NFC": "type",
    "NFD": "type",
    "NFKC": "type",
    "NFKD": "type",
    "Prepend": "type prepend",
    "Replace": "type pattern content",
    "ByteLevel": "type add_prefix_space trim_offsets use_regex",
    "Split": "type pattern behavior invert",
    "Digits": "type individual_digits",
    "Metaspace": "type replacement prepend_scheme split add_prefix_space str_rep",
    "Strip": "type content start stop",
    "TemplateProcessing": "type single pair special_tokens",
}
_MAX_ADDED = 1 << 16


class TokenizerJson:
    """A tokenizer.json, checked.

    byte_level  whether the vocabulary is written in the byte alphabet
    added       its added tokens
    before, after  ids that its post-processor puts around a text
    """

    def __init__(self, path: Path) -> None:
        self._file = TokenizerFile(path)
        self._where = path.name
        rest = self._file.rest
        model = rest.get("model")
        if not isinstance(model, dict):
            raise TokenizerError(f"{self._where}: model: {type(model).__name__}, expected an object")
        self._model = model
        kind = model.get("type", "BPE")
        if kind != "BPE" or self._file.tokens is None:
            raise TokenizerError(f"{self._where}: model {str(kind)[:40]!r} is not supported, expected BPE")
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if self._model.get(key):
                raise TokenizerError(f"{self._where}: model.{key} is not supported, expected none")
        # Old files name the special tokens; truncation and padding are the caller's business here.
        self._known(rest, "the file", "version truncation padding added_tokens normalizer pre_tokenizer "
                    "post_processor decoder model")  # fmt: skip
        self._known(self._model, "model", "type dropout unk_token continuing_subword_prefix end_of_word_suffix "
                    "fuse_unk byte_fallback ignore_merges vocab merges")  # fmt: skip
        self.byte_level = False
        self._normalizer = steps.in_turn(list(self._normalizers(rest.get("normalizer"))))
        self._pre_tokenizer = steps.in_turn(list(self._pre_tokenizers(rest.get("pre_tokenizer"))))
        self._strip_space = self._read_decoder(rest.get("decoder"))
        self.added = self._read_added(rest.get("added_tokens") or [])
        self.before, self.after = self._read_post_processor(rest.get("post_processor"))

    def _error(self, name: str, got: Any, expected: str) -> TokenizerError:
        return TokenizerError(f"{self._where}: {name}: {str(got)[:80]!r} is not supported, expected {expected}")

    def _known(self, value: Mapping[str, Any], name: str, keys: str) -> None:
        for key in value:
            if key not in keys.split():
                raise self._error(name, key, "one of " + ", ".join(keys.split()))

    def _flag(self, value: Mapping[str, Any], key: str, default: bool) -> bool:
        flag = value.get(key, default)
        if flag is None:
            return default
        if not isinstance(flag, bool):
            raise self._error(key, flag, "true or false")
        return flag

    # ---- steps ------------------------------------------------------------------------------------------------

    def _list(self, step: Any, key: str, name: str) -> list[Any]:
        """The steps of a Sequence, or the one step, or none."""
        if step is None:
            return []
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise self._error(name, step, "an object with a type")
        flat: Any = [step]
        if step["type"] == "Sequence":
            self._known(step, f"{name} Sequence", f"type {key}")
            flat = step.get(key)
            if not isinstance(flat, list) or len(flat) > 64:
                raise self._error(f"{name} Sequence", flat, "a list")
        for item in flat:
            if not isinstance(item, dict) or not isinstance(item.get("type"), str) or item["type"] == "Sequence":
                raise self._error(f"{name} Sequence", item, "steps that are no sequences")
            if item["type"] in _FIELDS:
                self._known(item, item["type"], _FIELDS[item["type"]])
        return flat

    def _string(self, step: Mapping[str, Any], key: str) -> str:
        value = step.get(key)
        if not isinstance(value, str):
            raise self._error(f"{step['type']}.{key}", value, "a string")
        return value

    def _string_pattern(self, step: Mapping[str, Any]) -> tuple[str, bool]:
        """A pattern's text and whether it is a regular expression."""
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and len(pattern) == 1:
            ((kind, text),) = pattern.items()
            if kind in ("String", "Regex") and isinstance(text, str) and text:
                return text, kind == "Regex"
        raise self._error(f"{step['type']}.pattern", pattern, "a String or Regex")

    def _normalizers(self, step: Any) -> Iterator[steps.Normalizer]:
        for item in self._list(step, "normalizers", "normalizer"):
            kind = item["type"]
            if kind in ("NFC", "NFD", "NFKC", "NFKD"):
                yield steps.unicode_form(kind)
            elif kind == "Prepend":
                yield steps.prepend(self._string(item, "prepend"))
            elif kind == "Replace":
                text, is_regex = self._string_pattern(item)
                if is_regex:
                    raise self._error("normalizer Replace", text, "a String pattern")
                yield steps.replace(text, self._string(item, "content"))
            else:
                raise self._error("normalizer", kind, "NFC, NFD, NFKC, NFKD, Prepend or Replace")

    def _pre_tokenizers(self, step: Any) -> Iterator[steps.PreTokenizer]:
        for item in self._list(step, "pretokenizers", "pre_tokenizer"):
            kind = item["type"]
            if self.byte_level:
                raise self._error("pre_tokenizer", kind, "nothing after ByteLevel")
            if kind == "ByteLevel":
                self.byte_level = True
                if self._flag(item, "add_prefix_space", True):
                    yield steps.space_first
                if self._flag(item, "use_regex", True):
                    yield steps.split_isolated(self._pattern(patterns.GPT2))
            elif kind == "Split":
                text, is_regex = self._string_pattern(item)
                pattern = self._pattern(text) if is_regex else patterns.literal(text)
                behavior, invert = item.get("behavior"), self._flag(item, "invert", False)
                if behavior == "Isolated":  # inverting swaps what is a match, and both become pieces
                    yield steps.split_isolated(pattern)
                elif behavior == "Removed" and invert:
                    yield steps.keep_matches(pattern)
                elif behavior == "MergedWithPrevious" and not invert and not is_regex:  # Gemma's
                    yield steps.split_after(text)
                else:
                    raise self._error("Split.behavior", f"{behavior}, invert {invert}", "Isolated")
            elif kind == "Digits":
                many = "" if self._flag(item, "individual_digits", False) else "+"
                yield steps.split_isolated(patterns.compile_class("NUMERIC", many))
            elif kind == "Metaspace":
                scheme = item.get("prepend_scheme", "always")
                if item.get("add_prefix_space") is False:
                    scheme = "never"
                if scheme not in ("always", "first", "never"):
                    raise self._error("Metaspace.prepend_scheme", scheme, "always, first or never")
                mark = self._string(item, "replacement")
                if mark != steps.SPACE_MARK:
                    raise self._error("Metaspace.replacement", mark, repr(steps.SPACE_MARK))
                yield steps.metaspace(scheme, self._flag(item, "split", True))
            else:
                raise self._error("pre_tokenizer", kind, "ByteLevel, Split, Digits or Metaspace")

    def _pattern(self, text: str) -> Any:
        return patterns.compile_pattern(text, f"{self._where}: pre_tokenizer")

    def _read_decoder(self, step: Any) -> bool:
        """Whether decoding drops the first space. The decoder must be the one that undoes the other steps."""
        found = self._list(step, "decoders", "decoder")
        kinds = [item["type"] for item in found]
        if self.byte_level:
            if kinds not in (["ByteLevel"], []):
                raise self._error("decoder", ", ".join(kinds), "ByteLevel")
            return False
        if kinds == ["Metaspace"]:
            never = found[0].get("prepend_scheme", "always") == "never"
            return not (never or found[0].get("add_prefix_space") is False)
        if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
            raise self._error("decoder", ", ".join(kinds), "Replace, ByteFallback, Fuse, Strip")
        if self._string_pattern(found[0]) != (steps.SPACE_MARK, False) or found[0].get("content") != " ":
            raise self._error("decoder Replace", found[0], "a space for each mark")
        if not kinds[3:]:
            return False
        strip = found[3]
        if (strip.get("content"), strip.get("start"), strip.get("stop")) != (" ", 1, 0):
            raise self._error("decoder Strip", strip, "one space at the start")
        return True

    def _read_post_processor(self, step: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after a text."""
        before: list[int] = []
        after: list[int] = []
        for item in self._list(step, "processors", "post_processor"):
            if item["type"] == "ByteLevel":  # concerns offsets only
                continue
            if item["type"] != "TemplateProcessing":
                raise self._error("post_processor", item["type"], "TemplateProcessing or ByteLevel")
            single, special = item.get("single"), item.get("special_tokens")
            if not isinstance(single, list) or not isinstance(special, dict):
                raise self._error("TemplateProcessing", item, "single and special_tokens")
            left: list[int] = []
            right: list[int] = []
            side = left
            for part in single:
                if isinstance(part, dict) and "Sequence" in part and side is left:
                    side = right
                elif isinstance(part, dict) and "SpecialToken" in part:
                    side += self._template_ids(part["SpecialToken"], special)
                else:
                    raise self._error("TemplateProcessing.single", part, "one Sequence and SpecialTokens")
            if side is left:
                raise self._error("TemplateProcessing.single", single, "a Sequence")
            before = left + before
            after += right
        return tuple(before), tuple(after)

    def _template_ids(self, part: Any, special: Mapping[str, Any]) -> list[int]:
        token = special.get(part["id"]) if isinstance(part, dict) and isinstance(part.get("id"), str) else None
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or not ids or len(ids) > 16 or any(type(i) is not int or i < 0 for i in ids):
            raise self._error("TemplateProcessing.special_tokens", part, "a token with its ids")
        return ids

    def _read_added(self, entries: Any) -> tuple[AddedToken, ...]:
        if not isinstance(entries, list) or len(entries) > _MAX_ADDED:
            raise self._error("added_tokens", type(entries).__name__, f"a list of at most {_MAX_ADDED}")
        for entry in entries:
            if not isinstance(entry, dict):
                raise self._error("added_tokens", entry, "objects with id and content")
        tokens = (added_token(entry.get("id"), entry, f"{self._where}: added_tokens") for entry in entries)
        return tuple(dict.fromkeys(tokens))  # an entry repeated exactly says nothing new

    # ---- parts ------------------------------------------------------------------------------------------------

    def parts(self, *, metaspace: str | None = None) -> Parts:
        """The tokenizer. `metaspace` ("first", "always") replaces normalizer and pre-tokenizer by that step.

        The file's strings are used up.
        """
        vocabulary, texts = self._vocabulary()
        added = self._checked_added(vocabulary, texts)
        decoded = {token_id: text.encode() for token_id, text in texts.items()}
        decoded |= {token.id: token.content.encode() for token in added}
        special = frozenset(token.id for token in added if token.special)
        merges, self._file.merges = iter(self._file.merges), []  # an iterator lets go of its list at the end
        where = f"{self._where}: model.merges"
        table = token_bytes.merge_table(vocabulary, merges, special, in_byte_alphabet=self.byte_level, where=where)
        options = {
            "unk_id": self._unk_id(vocabulary),
            "fuse_unk": self._flag(self._model, "fuse_unk", False),
            "ignore_merges": self._flag(self._model, "ignore_merges", False),
            "forbidden": special,
        }
        byte_fallback = self._flag(self._model, "byte_fallback", False)
        normalizer, pre_tokenizer = self._normalizer, self._pre_tokenizer
        model: MergedModel
        if self.byte_level:
            if byte_fallback:
                raise self._error("model.byte_fallback", True, "false in a byte-level tokenizer")
            model = ByteLevelModel(vocabulary, table, **options)
        else:
            if metaspace is not None:
                normalizer, pre_tokenizer = str, steps.metaspace(metaspace, False)
                options["fuse_unk"] = byte_fallback = True
            byte_ids = byte_pieces(vocabulary) if byte_fallback else None
            decoded |= {token_id: bytes([byte]) for byte, token_id in enumerate(byte_ids or ())}
            model = SentencePieceModel(vocabulary, table, byte_ids=byte_ids, **options)
        return Parts(
            "bpe" if self.byte_level else "sentencepiece", vocabulary, model, added, decoded, normalizer, pre_tokenizer,
            spaces=not self.byte_level, strip_space=self._strip_space or metaspace is not None,
            before=self.before, after=self.after,
        )  # fmt: skip

    def _vocabulary(self) -> tuple[Vocabulary, dict[int, str]]:
        """The vocabulary in id order, and the tokens outside the byte alphabet."""
        chunks, ids = self._file.tokens or [], self._file.ids
        self._file.tokens = None
        self._count = len(ids)
        size = int(ids.max(initial=-1)) + 1
        if size > MAX_TOKENS:
            raise TokenizerError(f"{self._where}: token id {size - 1}, expected below {MAX_TOKENS}")
        counts = np.bincount(ids, minlength=size)
        if (counts > 1).any():
            raise TokenizerError(f"{self._where}: model.vocab has id {int(np.argmax(counts > 1))} twice")
        blob, lengths = token_bytes.token_table(chunks, in_byte_alphabet=self.byte_level)
        texts: dict[int, str] = {}
        first = 0
        for chunk in chunks:
            outside = np.flatnonzero(lengths[first : first + len(chunk.lengths)] < 0)
            if len(outside):
                strings = chunk.unpack()
                texts |= {int(ids[first + index]): strings[index] for index in outside.tolist()}
            first += len(chunk.lengths)
        if not np.array_equal(ids, np.arange(size)):
            sizes = np.maximum(lengths, 0)
            ends = np.cumsum(sizes)
            order = np.argsort(ids, kind="stable")
            blob = b"".join(blob[end - size : end] for end, size in zip(ends[order].tolist(), sizes[order].tolist()))
            by_id = np.full(size, -1, np.int64)
            by_id[ids] = lengths
            lengths = by_id
        return Vocabulary(blob, lengths), texts

    def _unk_id(self, vocabulary: Vocabulary) -> int | None:
        token = self._model.get("unk_token")
        if token is None:
            return None
        if not isinstance(token, str):
            raise self._error("model.unk_token", token, "a string")
        token_id = self._find(vocabulary, token)
        if token_id < 0:
            raise TokenizerError(f"{self._where}: model.unk_token {token[:40]!r} is not in the vocabulary")
        return token_id

    def _find(self, vocabulary: Vocabulary, token: str) -> int:
        """The id of a token as the file writes it, or -1."""
        strings = token_bytes.Strings.of([token], self._where)
        blob, lengths = token_bytes.token_table([strings], in_byte_alphabet=self.byte_level)
        return vocabulary.find(blob) if lengths[0] >= 0 else -1

    def _checked_added(self, vocabulary: Vocabulary, texts: Mapping[int, str]) -> tuple[AddedToken, ...]:
        """The added tokens, each in the vocabulary under its id or following it."""
        names = {text: token_id for token_id, text in texts.items()}
        free = self._count
        seen: set[int] = set()
        for token in self.added:
            expected = names.get(token.content, self._find(vocabulary, token.content))
            if expected < 0:  # new tokens get the next number, whatever the file says: then it may say no other
                expected = free
                free += 1
            if token.id != expected or token.id in seen:
                raise TokenizerError(
                    f"{self._where}: added token {token.content[:40]!r} has id {token.id}, expected {expected}"
                )
            seen.add(token.id)
        return self.added


def added_token(token_id: Any, entry: Mapping[str, Any], where: str) -> AddedToken:
    """An AddedToken from its JSON object. Raises TokenizerError."""
    content = entry.get("content")
    if type(token_id) is not int or not 0 <= token_id < MAX_TOKENS or not isinstance(content, str) or not content:
        raise TokenizerError(f"{where}: {str(entry)[:80]}, expected an id and a content")
    if len(content) > token_bytes.MAX_TOKEN_LENGTH or any(0xD800 <= ord(c) < 0xE000 for c in content):
        raise TokenizerError(f"{where}: id {token_id}: content is too long or no Unicode text")
    flags = {}
    for flag in _FLAGS:
        value = entry.get(flag, flag == "normalized" and not entry.get("special", False))
        if not isinstance(value, bool):
            raise TokenizerError(f"{where}: id {token_id}: {flag} is {str(value)[:40]!r}, expected true or false")
        flags[flag] = value
    return AddedToken(token_id, content, **flags)
