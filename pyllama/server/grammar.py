"""JSON Schemas and grammars to guides that say which tokens may come next, by means of llguidance.

llguidance is the one of the kept-up grammar libraries that needs nothing else: an abi3 wheel of 3 MB for aarch64 as for
x86_64, no torch, 7 MB when it is imported and some 20 to 70 for a vocabulary, and only once somebody asks for JSON. It
runs in processes of its own (grammar_process.py); here it is decided who gets one, and when.
"""

import asyncio
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyllama.engine.turns import Turns
from pyllama.errors import RequestError
from pyllama.extras import how_to_install
from pyllama.server.errors import invalid, unsupported
from pyllama.server.grammar_process import Grammar, GrammarProcess, GrammarProcesses, Refused, TooSlow
from pyllama.server.json_object import JsonObject
from pyllama.server.json_schema import enforceable

if TYPE_CHECKING:
    from pyllama.model import Model

# One space after a comma and a colon and none elsewhere: a token costs a pass, and a small model that may write any
# whitespace can write nothing else for ever.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
# A schema is a stranger's program: what it may cost is bounded. Four items of a row are an optional property.
_LIMITS = {"max_grammar_size": 200_000, "max_lexer_states": 100_000, "max_items_in_row": 20_000}
# Seconds of processor time. Nearly all compile in the first; who does not is ended, and begins anew where only those
# wait that take long as well.
SHORT_S = 0.5
LONG_S = 8.0
_MAX_WAITING = 64


class Grammars:
    """Makes guides for one model. Whoever asks for a short grammar never waits for a long one; clients take turns."""

    def __init__(self, model: "Model"):
        self._vocab_size = model.config.vocab_size
        self._processes = GrammarProcesses(model)
        self._short = Turns(2, _MAX_WAITING, "have their grammars compiled")
        self._long = Turns(1, _MAX_WAITING // 8, "have their large grammars compiled")

    async def guide(self, grammar: Grammar, client: str = "", answers: int = 1) -> "GrammarGuide":
        """A guide for some answers. Raises ApiError naming the grammar's field, and BusyError.

        Cancelled, compiling ends at once.
        """
        _check_installed(grammar.param)
        try:
            process = await self._compiled(grammar, client, answers)
        except Refused as error:
            raise invalid(grammar.param, str(error)) from None
        except TooSlow:
            raise invalid(
                grammar.param, f"it takes more than {LONG_S:g} s to compile, expected less; make it smaller"
            ) from None
        return GrammarGuide(process, self._vocab_size, list(range(answers))[::-1])

    async def _compiled(self, grammar: Grammar, client: str, answers: int) -> GrammarProcess:
        async with self._short.turn(client):
            try:
                return await self._processes.make(grammar, _LIMITS, SHORT_S, answers)
            except TooSlow:
                pass
        async with self._long.turn(client):
            return await self._processes.make(grammar, _LIMITS, LONG_S, answers)

    def json(self, schema: JsonObject, param: str, answers: int = 1) -> "GrammarGuide":
        """A guide for JSON that fits the schema, for a program without an event loop. Raises ApiError naming param."""
        return asyncio.run(self.guide(json_grammar(schema, param), answers=answers))

    def lark(self, grammar: str, param: str, answers: int = 1) -> "GrammarGuide":
        """A guide for a grammar in llguidance's dialect of Lark, for a program without an event loop."""
        return asyncio.run(self.guide(Grammar(grammar, param), answers=answers))


def json_grammar(schema: JsonObject, param: str) -> Grammar:
    """JSON that fits the schema. Raises ApiError for a schema of a kind that cannot be enforced."""
    return Grammar(f"start: {embedded(schema)}\n", param)


def embedded(schema: JsonObject) -> str:
    """A JSON Schema as a term of a Lark grammar. References in it are from its own root, whatever stands around it."""
    return "%json " + json.dumps({**enforceable(schema), "x-guidance": _STYLE})


def _check_installed(param: str) -> None:
    try:  # not imported: here it would only take memory
        found = importlib.util.find_spec("llguidance") is not None
    except ValueError:  # it stands for something else, or for nothing
        found = sys.modules.get("llguidance") is not None
    if not found:
        how = how_to_install("grammar", here=False)
        raise unsupported(param, f"cannot be enforced where llguidance is not installed; {how}")


class GrammarGuide:
    """A FarSeeingGuide (generation/answer.py) for one answer.

    spare  numbers of answers that the process knows, for this one and its copies
    """

    def __init__(self, process: GrammarProcess, vocab_size: int, spare: list[int]):
        self._process = process
        self._vocab_size = vocab_size
        self._spare = spare
        self._answer = spare.pop()

    def copy(self) -> "GrammarGuide":
        """One for another answer, before this one has begun: as many as the grammar was compiled for."""
        return GrammarGuide(self._process, self._vocab_size, self._spare)

    def allowed(self) -> np.ndarray:
        mask = np.frombuffer(self._process.mask(self._answer), np.uint8)
        ids = np.flatnonzero(np.unpackbits(mask, bitorder="little")[: self._vocab_size])
        if not len(ids):
            raise RequestError.about(self._process.param, "nothing fits the schema: no token may follow")
        return ids

    def accept(self, token_id: int) -> bool:
        return self._process.accept(self._answer, token_id)

    def fitting(self, token_ids: Sequence[int]) -> int:
        """By their text: where only one text may follow, a token that cuts it otherwise fits and is not allowed.

        A grammar that fails here lets nothing be proposed; whose fault that is, its next token tells: other answers
        share the pass that is being made up.
        """
        try:
            return self._process.fitting(self._answer, token_ids)
        except RequestError:
            return 0
