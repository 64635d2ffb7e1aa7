"""tokenizer.json without its million Python objects: the vocabulary and merges in chunks, the rest as usual.

Walks the top of the file itself, hands runs of a few thousand entries to json.loads, and keeps nothing of them. What
is a token or a merge, and what they mean, is the caller's business.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.errors import TokenizerError, reason_of
from pyllama.strict_json import MAX_ITEMS, check_items
from pyllama.tokenizer.token_bytes import CHUNK, MAX_MERGES, Strings
from pyllama.tokenizer.vocabulary import MAX_TOKENS

MAX_NBYTES = 96 << 20  # the largest published, of 262,000 tokens, has 33 MB
_MAX_REST = 16 << 20  # everything but vocabulary and merges
_MAX_RUN = 2 << 20  # bytes of one run of entries, and of a key
_MAX_KEYS = 256
_WS = rb"[ \t\n\r]*+"
_STRING = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'


def _run(entry: bytes, close: bytes) -> re.Pattern[bytes]:
    body = _WS + entry + _WS + rb"(?:,|(?=" + close + rb"))"
    return re.compile(rb"(?:" + body + rb"){1,%d}+" % CHUNK)


_VOCABULARY = _run(_STRING + _WS + rb":" + _WS + rb"\d{1,9}+", rb"\}")
_MERGES = _run(_STRING, rb"\]")
_MERGE_PAIRS = _run(rb"\[" + _WS + _STRING + _WS + rb"," + _WS + _STRING + _WS + rb"\]", rb"\]")
_SPACE = re.compile(_WS)
_KEY = re.compile(_WS + rb"(" + _STRING + rb")" + _WS + rb":" + _WS)
_SCALAR = re.compile(_STRING + rb"|-?\d[-+.eE\d]*+|true|false|null")
_BRACKET = re.compile(_STRING + rb"|[\[\]{}]")


class TokenizerFile:
    """A tokenizer.json, read once from beginning to end.

    rest        everything but model.vocab and model.merges, as json.loads gives it
    tokens      the keys of model.vocab, in file order
    ids         (n,) int64, their ids
    merges      model.merges: left, right, left, right, ...
    """

    def __init__(self, path: Path) -> None:
        self._where = path.name
        self._rest_nbytes = self._end = self._forgotten = 0
        self.tokens: list[Strings] | None = None
        self.ids = np.zeros(0, np.int64)
        self.merges: list[Strings] = []
        try:
            with path.open("rb") as file:
                nbytes = file.seek(0, 2)
                if not 2 <= nbytes <= MAX_NBYTES:
                    raise TokenizerError(f"{path}: {nbytes} bytes, expected 2 to {MAX_NBYTES}")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise TokenizerError(f"{path}: {reason_of(error)}") from None
        with self._data:
            self.rest, end = self._object(self._skip_space(0), {"model": self._model})
            if self._skip_space(end) != nbytes:
                raise self._error(end, "the end of the file")

    def _model(self, at: int) -> tuple[Any, int]:
        return self._object(at, {"vocab": self._read_vocabulary, "merges": self._read_merges})

    def _read_vocabulary(self, at: int) -> tuple[Any, int]:
        """model.vocab. Models other than BPE have lists there: left to be refused by their name."""
        if self._data[at : at + 1] != b"{":
            return None, self._skip_value(at, limit=MAX_NBYTES)
        where = f"{self._where}: model.vocab"
        self.tokens = []
        ids = [self.ids]
        for pairs, _ in self._runs(at + 1, (_VOCABULARY,), b"{}", MAX_TOKENS, where):
            self.tokens.append(Strings.of([token for token, _ in pairs], where))
            ids.append(np.fromiter((token_id for _, token_id in pairs), np.int64, len(pairs)))
        self.ids = np.concatenate(ids)
        return None, self._end

    def _read_merges(self, at: int) -> tuple[Any, int]:
        where = f"{self._where}: model.merges"
        at = self._open(at, b"[", "model.merges")
        for entries, pattern in self._runs(at, (_MERGES, _MERGE_PAIRS), b"[]", MAX_MERGES, where):
            if pattern is _MERGES:
                self.merges.append(Strings.of(entries, where).halves(where))
            else:
                self.merges.append(Strings.of([token for pair in entries for token in pair], where))
        return None, self._end

    def _runs(
        self, at: int, patterns: tuple[re.Pattern[bytes], ...], brackets: bytes, most: int, where: str
    ) -> Iterator[tuple[list[Any], re.Pattern[bytes]]]:
        """The entries of each run, pairs in an object, and its pattern; sets self._end."""
        more = False  # a comma was seen, so an entry must follow
        count = 0
        while True:
            start = self._skip_space(at)
            if self._data[start : start + 1] == brackets[1:] and not more:
                self._end = start + 1
                return
            for pattern in patterns:
                match = pattern.match(self._data, at, min(len(self._data), at + _MAX_RUN))
                if match is not None:
                    break
            else:
                raise self._error(start, "an entry of the list or its end")
            at = match.end()
            self._forget(at)
            more = match.group().endswith(b",")
            text = brackets[:1] + match.group().removesuffix(b",") + brackets[1:]
            entries = self._loads(text, object_pairs_hook=list)
            count += len(entries)
            if count > most:
                raise TokenizerError(f"{where}: more than {most} entries")
            yield entries, pattern

    def _object(self, at: int, handlers: dict[str, Callable[[int], tuple[Any, int]]]) -> tuple[dict[str, Any], int]:
        """The object at `at`, some of its members read by handlers, and where it ends."""
        at = self._skip_space(self._open(at, b"{", "the file"))
        found: dict[str, Any] = {}
        if self._data[at : at + 1] == b"}":
            return found, at + 1
        while True:
            match = _KEY.match(self._data, at, min(len(self._data), at + _MAX_RUN))
            if match is None:
                raise self._error(at, "a key")
            key = self._loads(match.group(1))
            if key in found or len(found) >= _MAX_KEYS:
                raise TokenizerError(f"{self._where}: key {key[:40]!r} appears twice, or too many keys")
            at = match.end()
            if key in handlers:
                found[key], at = handlers[key](at)
            else:
                end = self._skip_value(at, limit=_MAX_REST)
                self._rest_nbytes += end - at
                if self._rest_nbytes > _MAX_REST:
                    raise TokenizerError(f"{self._where}: more than {_MAX_REST} bytes besides vocabulary and merges")
                found[key] = self._loads(self._data[at:end])
                at = end
            at = self._skip_space(at)
            separator = self._data[at : at + 1]
            at += 1
            if separator == b"}":
                return found, at
            if separator != b",":
                raise self._error(at - 1, "a comma or the end of the object")

    def _forget(self, at: int) -> None:
        """What was read is not read again, and need not count as this process's memory."""
        done = at // _MAX_RUN * _MAX_RUN
        if done > self._forgotten and hasattr(self._data, "madvise"):
            self._data.madvise(mmap.MADV_DONTNEED, self._forgotten, done - self._forgotten)
            self._forgotten = done

    def _skip_space(self, at: int) -> int:
        return _SPACE.match(self._data, at).end()  # type: ignore[union-attr]

    def _open(self, at: int, bracket: bytes, name: str) -> int:
        if self._data[at : at + 1] != bracket:
            raise self._error(at, f"{bracket.decode()} of {name}")
        return at + 1

    def _skip_value(self, at: int, limit: int) -> int:
        """Where the value at `at` ends."""
        first = self._data[at : at + 1]
        if first not in (b"{", b"["):
            match = _SCALAR.match(self._data, at, min(len(self._data), at + limit))
            if match is None:
                raise self._error(at, "a value")
            return match.end()
        depth = items = 0
        for match in _BRACKET.finditer(self._data, at, min(len(self._data), at + limit)):
            token = match.group()
            items += 1  # noqa: SIM113 - also counted after the loop
            if items > 2 * MAX_ITEMS:
                break
            if token in (b"{", b"["):
                depth += 1
            elif token in (b"}", b"]"):
                depth -= 1
                if depth == 0:
                    return match.end()
        raise self._error(at, f"the end of a value within {limit} bytes and {MAX_ITEMS} items")

    def _loads(self, data: bytes, **options: Any) -> Any:
        check_items(data, self._where, TokenizerError)
        try:
            return json.loads(data.decode(), **options)
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{self._where}: no UTF-8: {error.reason}") from None
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"{self._where}: bad JSON: {str(error)[:100] or 'nested too deeply'}") from None

    def _error(self, at: int, expected: str) -> TokenizerError:
        got = bytes(self._data[at : at + 20])
        return TokenizerError(f"{self._where}: {got!r} at byte {at}, expected {expected} (truncated?)")
