"""JSON Schemas and grammars to guides that say which tokens may come next, by means of llguidance.

llguidance is the one of the kept-up grammar libraries that needs nothing else: an abi3 wheel of 3 MB for aarch64 as for
x86_64, no torch, 7 MB when it is imported and some 20 for a vocabulary, and only once somebody asks for JSON.
"""

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama.errors import RequestError
from pyllama.server.errors import ApiError
from pyllama.server.json_schema import enforceable

if TYPE_CHECKING:
    from pyllama.model import Model

# One space after a comma and a colon and none elsewhere: a token costs a pass, and a small model that may write any
# whitespace can write nothing else for ever.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
# A schema is a stranger's program: what it may cost is bounded. Four items of a row are an optional property.
_LIMITS = {"max_grammar_size": 200_000, "max_lexer_states": 100_000, "max_items_in_row": 20_000}


class Grammars:
    """Makes guides for one model. The vocabulary is prepared when the first is asked for."""

    def __init__(self, model: "Model"):
        self._model = model
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def json(self, schema: dict[str, Any], param: str) -> "GrammarGuide":
        """A guide for JSON that fits the schema. Raises ApiError naming param."""
        return self.lark(f"start: {embedded(schema)}\n", param)

    def lark(self, grammar: str, param: str) -> "GrammarGuide":
        """A guide for a grammar in llguidance's dialect of Lark."""
        llguidance = _llguidance(param)
        return self._guide(llguidance.LLMatcher.grammar_from_lark(grammar), param)

    def _guide(self, grammar: str, param: str) -> "GrammarGuide":
        llguidance = _llguidance(param)
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _tokenizer(llguidance, self._model)
        limits = llguidance.LLParserLimits(**_LIMITS)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ApiError(400, f"{param}: {_reason(matcher.get_error())}", param, "invalid_value")
        guide = GrammarGuide(matcher, self._model.config.vocab_size, param)
        guide.copy().allowed()  # a schema that nothing fits is told now, not as the first token is drawn
        return guide


def embedded(schema: dict[str, Any]) -> str:
    """A JSON Schema as a term of a Lark grammar. References in it are from its own root, whatever stands around it."""
    return "%json " + json.dumps({**enforceable(schema), "x-guidance": _STYLE})


def _reason(error: str) -> str:
    """What a client can do something about in llguidance's account of an error, as one line."""
    lines = [line.strip() for line in error.strip().splitlines()]
    text = lines[0] if lines else ""
    for before in ("failed to compile JSON schema: ", 'failed to parse "%json": ', "Parser Error: "):
        text = text.partition(before)[2] or text
    why = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    if text.startswith("regex parse error"):
        pattern = next((line for line in lines[1:] if line), "")
        text = f"a pattern that cannot be followed: {why or 'it is no regular expression'}: {pattern[:100]!r}"
    elif text.startswith("Unimplemented keys: "):
        text = f"the schema has {text.removeprefix('Unimplemented keys: ')}, which cannot be enforced here"
    elif "items; max is" in text or "too large" in text or "limit" in text.lower():
        text = f"the schema is too large or too deep: {text.partition(';')[0]}"
    elif text.startswith("Resource "):
        text = (
            f"a $ref to {text.removeprefix('Resource ').partition(' is not')[0]}, expected one into the schema itself"
        )
    elif text.startswith("NoExtension"):
        text = "nothing fits the schema"
    elif text.startswith("Failed to generate regex for integer range"):
        text = "bounds of an integer beyond 64 bits"
    return (text or "the schema cannot be enforced").rstrip(": ")[:300]


def _llguidance(param: str) -> Any:
    try:
        import llguidance
    except ImportError:
        raise ApiError(
            400, f"{param}: this server cannot enforce it; install pyllama[grammar] there", param, "unsupported"
        ) from None
    return llguidance


def _tokenizer(llguidance: Any, model: "Model") -> Any:
    tokenizer, size = model.tokenizer, model.config.vocab_size

    class Wrapped:
        eos_token_id = next(iter(tokenizer.eos_token_ids), size - 1)
        bos_token_id = tokenizer.bos_token_id
        tokens = [tokenizer.token_bytes(i) if i < tokenizer.vocab_size else b"" for i in range(size)]
        special_token_ids = sorted(tokenizer.special_ids)

        def __call__(self, text: bytes | str) -> list[int]:
            text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
            return tokenizer.encode(text, add_special_tokens=False)

    ends = list(tokenizer.eos_token_ids) or [Wrapped.eos_token_id]
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapped()), n_vocab=size, eos_token=ends)


class GrammarGuide:
    """A Guide (generation/answer.py) for one answer. RequestError names param when the grammar cannot go on."""

    def __init__(self, matcher: Any, vocab_size: int, param: str):
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._param = param

    def copy(self) -> "GrammarGuide":
        """One for another answer."""
        return GrammarGuide(self._matcher.deep_copy(), self._vocab_size, self._param)

    def allowed(self) -> np.ndarray:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        ids = np.flatnonzero(np.unpackbits(mask, bitorder="little")[: self._vocab_size])
        if not len(ids):
            raise RequestError(f"{self._param}: nothing fits the schema: no token may follow")
        return ids

    def accept(self, token_id: int) -> bool:
        if not self._matcher.consume_token(token_id):
            self._check()
            raise RequestError(f"{self._param}: token {token_id} does not fit the schema")
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"{self._param}: {_reason(self._matcher.get_error())}")
