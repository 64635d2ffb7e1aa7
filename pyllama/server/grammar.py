"""JSON Schemas and grammars to guides that say which tokens may come next, by means of llguidance.

llguidance is the one of the kept-up grammar libraries that needs nothing else: an abi3 wheel of 3 MB for aarch64 as for
x86_64, no torch, 7 MB when it is imported and some 20 for a vocabulary, and only once somebody asks for JSON.
"""

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama.errors import PyllamaError
from pyllama.server.errors import ApiError

if TYPE_CHECKING:
    from pyllama.model import Model

# One space after a comma and a colon and none elsewhere: a token costs a pass, and a small model that may write any
# whitespace can write nothing else for ever.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# A schema is a stranger's program: what it may cost is bounded.
_LIMITS = {"max_grammar_size": 200_000, "max_lexer_states": 100_000}


class Grammars:
    """Makes guides for one model. The vocabulary is prepared when the first is asked for."""

    def __init__(self, model: "Model"):
        self._model = model
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def json(self, schema: dict[str, Any], param: str) -> "GrammarGuide":
        """A guide for JSON that fits the schema. Raises ApiError naming param."""
        llguidance = _llguidance(param)
        return self._guide(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_STYLE), param)

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
            reason = matcher.get_error().strip().splitlines()[0][:300]
            raise ApiError(400, f"{param}: {reason}", param, "invalid_value")
        return GrammarGuide(matcher, self._model.config.vocab_size)


def embedded(schema: dict[str, Any]) -> str:
    """A JSON Schema as a term of a Lark grammar."""
    return "%json " + json.dumps({**schema, "x-guidance": _STYLE})


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
    """A Guide (generation/answer.py) for one answer."""

    def __init__(self, matcher: Any, vocab_size: int):
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> "GrammarGuide":
        """One for another answer."""
        return GrammarGuide(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> np.ndarray:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        ids = np.flatnonzero(np.unpackbits(mask, bitorder="little")[: self._vocab_size])
        if not len(ids):
            raise PyllamaError(f"grammar: no token may follow: {self._matcher.get_error()}")
        return ids

    def accept(self, token_id: int) -> bool:
        if not self._matcher.consume_token(token_id):
            raise PyllamaError(f"grammar: {self._matcher.get_error()}")
        return self._matcher.is_stopped()
