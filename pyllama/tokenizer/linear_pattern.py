"""Patterns of strangers, matched in linear time: no pattern and no text can make it backtrack.

Turns a pattern in the syntax of pattern.py into an automaton (Thompson, 1968) whose states are made as a text needs
them. It finds what a backtracking engine finds, the first alternative that leads to a match and its greedy or lazy
repeats, by keeping the ways a match may go in their order of preference; the way of RE2 and of Rust's regex. A pass
from the end of the text marks where a match begins, so that no position is tried in vain, and one for each lookahead
marks where it holds. What is left that could take long (many states, far looks ahead of what is taken) draws on a
budget of steps that depends on the text's length alone: the same text is refused on every machine, or on none.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.pattern_syntax import END, Alternatives, Characters, Look, Node, Repeat, Sequence, parse

MAX_PARTS = 8192
_MAX_SYMBOLS = 255
_MAX_CACHED = 1 << 19  # instructions in the states of an automaton, all together
# Steps that a text may take: so many a character, and what making the states of a benign pattern takes.
_STEPS_A_CHARACTER = 48
_STEPS = 2_000_000
_SLICE = 1 << 16  # characters that are looked up without letting other threads run
#: A reason to the error that says of which pattern it is.
Refuse = Callable[[str], TokenizerError]


class LinearPattern:
    """A compiled pattern, for splitting text.

    Raises TokenizerError for a pattern that is not understood, or too large. Matching takes time linear in the text;
    it raises TokenizerError beyond the budget of steps.
    """

    def __init__(self, pattern: str, where: str) -> None:
        self.pattern = pattern
        self._where = where
        tree = parse(pattern, where)
        self._alphabet = _Alphabet(tree, self._refuse)
        looks = self._alphabet.looks  # inner ones first: those around them ask where they hold
        self._looks, self._automaton = [self._build(body) for body in looks], self._build(tree)

    def _refuse(self, reason: str) -> TokenizerError:
        return TokenizerError(f"{self._where}: pattern {self.pattern[:200]!r}: {reason}")

    def _build(self, tree: Node) -> _Automaton:
        program = _Program()
        self._parts = 0
        program.start = self._add(program, tree, program.add(None, []))
        return _Automaton(program, self._alphabet.size)

    def _add(self, program: _Program, node: Node, following: int) -> int:
        """The instruction that `node`, and then `following`, begins with."""
        self._parts += 1  # which need not make an instruction: `(?:)` makes none
        if self._parts > MAX_PARTS:
            raise self._refuse(f"more than {MAX_PARTS} parts when its repeats are written out")
        if isinstance(node, Characters):
            return program.add(self._alphabet.symbols(node), [following], takes=True)
        if isinstance(node, Look):
            return program.add(self._alphabet.holds(node), [following])
        if isinstance(node, Sequence):
            for part in reversed(node.parts):
                following = self._add(program, part, following)
            return following
        if isinstance(node, Alternatives):
            return program.add(None, [self._add(program, part, following) for part in node.parts])
        return self._add_repeat(program, node, following)

    def _add_repeat(self, program: _Program, node: Repeat, following: int) -> int:
        if node.possessive:
            # All it can take, and never less: for one character that is to say what must not follow.
            if not isinstance(node.body, Characters):
                raise self._refuse("a possessive repeat of more than one character is not supported")
            stop = program.add(self._alphabet.holds(Look(node.body, False)), [following])
            if node.most == 1:
                return program.add(None, [self._add(program, node.body, following), stop])
            following = stop

        def ordered(again: int, on: int) -> list[int]:
            return [on, again] if node.lazy else [again, on]

        if node.most is None:
            after = program.add(None, [])
            program.targets[after] = ordered(self._add(program, node.body, after), following)
        else:
            after = following
            for _ in range(node.most - node.least):
                after = program.add(None, ordered(self._add(program, node.body, after), following))
        for _ in range(node.least):
            after = self._add(program, node.body, after)
        return after

    # --- matching ---

    def findall(self, text: str) -> list[str]:
        """The text of each match, from left to right."""
        return [text[first:last] for first, last in self.spans(text)]

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each match begins and ends. After an empty one, the search goes on a character further."""
        steps = _Steps(_STEPS + _STEPS_A_CHARACTER * len(text), self._refuse)
        symbols = self._alphabet.read(text)
        for bit, automaton in enumerate(self._looks):
            marks = np.frombuffer(automaton.marks(symbols, steps), np.uint8)
            symbols = (np.frombuffer(symbols, np.uint8) + marks * (self._alphabet.kinds << bit)).tobytes()
        begins = self._automaton.marks(symbols, steps)
        at, ended = 0, -1
        while (first := begins.find(1, at)) >= 0:
            last = self._automaton.end(symbols, first, steps)
            if last > first:
                yield first, last
                at = ended = last
            else:
                if first != ended:
                    yield first, first
                at = first + 1


class _Alphabet:
    """Code points to symbols: all that no part of the pattern tells apart are one, and the end of the text among them.

    kinds  symbols that characters and the end have
    looks  bodies of lookaheads further than one character, and the bit of each
    size   all symbols: kinds for each combination of the lookaheads that hold there
    """

    def __init__(self, tree: Node, refuse: Refuse) -> None:
        sets: dict[Characters, None] = {}
        self.looks: dict[Node, int] = {}
        self._collect(tree, sets)
        sets = sets or {Characters(()): None}
        # Not np.unique(), which without an inverse loads numpy.ma: 2 MB, and more time than all of this.
        edges = np.array(sorted({END, 0, *(edge for one in sets for span in one.spans for edge in span)}))
        member = np.zeros((len(edges), len(sets)), bool)
        for column, one in enumerate(sets):
            starts = np.array([start for start, _ in one.spans], np.int64)
            stops = np.array([stop for _, stop in one.spans], np.int64)
            index = np.searchsorted(starts, edges, "right") - 1
            member[:, column] = (index >= 0) & (edges < stops[index] if len(stops) else False)
        kinds, symbol_of = np.unique(member, axis=0, return_inverse=True)
        self.kinds = len(kinds)
        self.size = self.kinds << len(self.looks)
        if self.size > _MAX_SYMBOLS:
            raise refuse(f"{self.size} kinds of characters and lookaheads, expected at most {_MAX_SYMBOLS}")
        self._columns = {one: kinds[:, column] for column, one in enumerate(sets)}
        symbols = symbol_of.reshape(-1).tolist()
        self._table, self._end = _SymbolTable(edges.tolist(), symbols), bytes(symbols[:1])

    def _collect(self, node: Node, sets: dict[Characters, None]) -> None:
        if isinstance(node, Characters):
            sets[node] = None
        elif isinstance(node, (Sequence, Alternatives)):
            for part in node.parts:
                self._collect(part, sets)
        else:
            self._collect(node.body, sets)
            if isinstance(node, Look) and not _is_one_character(node.body):
                self.looks.setdefault(node.body, len(self.looks))

    def symbols(self, node: Characters) -> frozenset[int]:
        """The symbols of a set's characters."""
        return frozenset(symbol for symbol in range(self.size) if self._columns[node][symbol % self.kinds])

    def holds(self, node: Look) -> frozenset[int]:
        """The symbols at which a lookahead holds."""
        bit = self.looks.get(node.body)
        if bit is None:
            inside = self._of_one_character(node.body)
        else:
            inside = frozenset(symbol for symbol in range(self.size) if symbol // self.kinds >> bit & 1)
        return inside if node.positive else frozenset(range(self.size)) - inside

    def _of_one_character(self, node: Node) -> frozenset[int]:
        if isinstance(node, Characters):
            return self.symbols(node)
        if isinstance(node, Look):
            return self.holds(node)
        assert isinstance(node, (Alternatives, Sequence))
        return frozenset().union(*map(self._of_one_character, node.parts))

    def read(self, text: str) -> bytes:
        """A symbol for each character and one for the end, lookaheads left out."""
        look_up = self._table.__getitem__
        slices = (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))
        return b"".join([*(bytes(map(look_up, part)) for part in slices), self._end])


def _is_one_character(node: Node) -> bool:
    """Whether a lookahead to this looks no further than the next character, or the end."""
    if isinstance(node, Look):
        return _is_one_character(node.body)
    if isinstance(node, Alternatives):
        return all(map(_is_one_character, node.parts))
    return isinstance(node, Characters) or (
        isinstance(node, Sequence) and len(node.parts) == 1 and _is_one_character(node.parts[0])
    )


class _SymbolTable(dict):
    """character -> symbol, as they come."""

    def __init__(self, starts: list[int], symbols: list[int]) -> None:
        super().__init__()
        self._starts, self._symbols = starts, symbols

    def __missing__(self, character: str) -> int:
        if len(self) > 1 << 15:  # there are a million
            self.clear()
        symbol = self[character] = self._symbols[bisect_right(self._starts, ord(character)) - 1]
        return symbol


class _Program:
    """Instructions by number: take a character, look at the next one, go several ways, or match.

    symbols  what it takes or looks for; None for the others
    takes    whether it takes
    targets  where it goes on, in order of preference; none after a match
    """

    def __init__(self) -> None:
        self.symbols: list[frozenset[int] | None] = []
        self.takes: list[bool] = []
        self.targets: list[list[int]] = []
        self.start = 0

    def add(self, symbols: frozenset[int] | None, targets: list[int], *, takes: bool = False) -> int:
        self.symbols.append(symbols)
        self.takes.append(takes)
        self.targets.append(targets)
        return len(self.targets) - 1


class _Steps:
    """What a text may still cost."""

    def __init__(self, left: int, refuse: Refuse) -> None:
        self._left, self._refuse = left, refuse

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise self._refuse(
                f"more than {_STEPS_A_CHARACTER} steps a character; it looks far ahead of what it takes, or has too "
                "many states"
            )


class _States:
    """States made so far: their numbers, and where each goes at each symbol (-1: not known yet)."""

    def __init__(self) -> None:
        self.numbers: dict = {}
        self.contents: list = []
        self.rows: list[list[int]] = []
        self.size = 0
        self.lock = threading.Lock()

    def number(self, content, size: int, symbols: int) -> int:
        found = self.numbers.get(content)
        if found is None:
            found = self.numbers[content] = len(self.contents)
            self.rows.append([-1] * symbols)
            self.contents.append(content)
            self.size += size + symbols
        return found


class _Automaton:
    """A program that runs: forwards by ordered ways, backwards by sets. Several threads may use one."""

    def __init__(self, program: _Program, symbols: int) -> None:
        self._program, self._symbols = program, symbols
        targets = {t for i, ts in enumerate(program.targets) if program.takes[i] for t in ts}
        self._landings = sorted(targets | {program.start})
        self._bits = {landing: 1 << bit for bit, landing in enumerate(self._landings)}
        self._start_bit = self._bits[program.start]
        self._reached: list[dict[int, tuple[bool, int]]] = [{} for _ in self._landings]
        self._forward, self._backward = _States(), _States()

    # --- forwards ---

    def end(self, symbols: bytes, first: int, steps: _Steps) -> int:
        """Where the match that begins at `first` ends; -1 if none does."""
        states = self._current("_forward")
        with states.lock:
            state = states.number((self._program.start,), 1, self._symbols)
        rows, last, at = states.rows, -1, first
        while True:
            step = rows[state][symbols[at]]
            if step < 0:
                step = self._step(states, state, symbols[at], steps)
            if step & 1:
                last = at
            state = step >> 1
            if not state:
                break
            state -= 1
            at += 1
        steps.take(at - first)
        return last

    def _current(self, name: str) -> _States:
        states = getattr(self, name)
        if states.size > _MAX_CACHED:
            states = _States()
            setattr(self, name, states)
        return states

    def _step(self, states: _States, state: int, symbol: int, steps: _Steps) -> int:
        """2 * (next state + 1, or 0 for none) + whether a match ends here."""
        with states.lock:
            matched = 0
            taken: dict[int, None] = {}
            seen: set[int] = set()
            for landing in self._walk(states.contents[state], symbol, seen):
                if landing is None:
                    matched = 1
                    break  # what is less preferred than a match does not count
                taken[landing] = None
            steps.take(8 * len(seen))
            following = 1 + states.number(tuple(taken), len(taken), self._symbols) if taken else 0
            step = states.rows[state][symbol] = 2 * following + matched
        return step

    # --- backwards ---

    def marks(self, symbols: bytes, steps: _Steps) -> bytes:
        """For each position, whether a match begins there."""
        states = self._current("_backward")
        with states.lock:
            state = states.number(0, 1, self._symbols)
        rows = states.rows
        found = bytearray(len(symbols))
        for at in range(len(symbols) - 1, -1, -1):
            step = rows[state][symbols[at]]
            if step < 0:
                if states.size > _MAX_CACHED:
                    alive, states = states.contents[state], _States()
                    self._backward, rows = states, states.rows
                    state = states.number(alive, 1, self._symbols)
                step = self._step_back(states, state, symbols[at], steps)
            found[at] = step & 1
            state = step >> 1
        return bytes(found)

    def _step_back(self, states: _States, state: int, symbol: int, steps: _Steps) -> int:
        """2 * state before the symbol + whether a match begins there. A state: the landings that lead to a match."""
        with states.lock:
            after, before = states.contents[state], 0
            for number, landing in enumerate(self._landings):
                reached = self._reached[number].get(symbol)
                if reached is None:
                    reached = self._reached[number][symbol] = self._reach(landing, symbol, steps)
                if reached[0] or reached[1] & after:
                    before |= 1 << number
            steps.take(len(self._landings))
            size = 1 + len(self._landings) // 32
            step = 2 * states.number(before, size, self._symbols) + bool(before & self._start_bit)
            states.rows[state][symbol] = step
        return step

    def _reach(self, landing: int, symbol: int, steps: _Steps) -> tuple[bool, int]:
        """Whether a match ends here, and the landings behind the symbol, as bits."""
        matched, behind = False, 0
        seen: set[int] = set()
        for reached in self._walk((landing,), symbol, seen):
            if reached is None:
                matched = True
            else:
                behind |= self._bits[reached]
        steps.take(len(seen))
        return matched, behind

    def _walk(self, ways: tuple[int, ...], symbol: int, seen: set[int]) -> Iterator[int | None]:
        """The landings behind the symbol on these ways, in order of preference; None for a match.

        seen  instructions that were passed
        """
        program = self._program
        stack = list(reversed(ways))
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            allowed, targets = program.symbols[at], program.targets[at]
            if not targets:
                yield None
            elif allowed is not None and symbol not in allowed:
                continue
            elif program.takes[at]:
                yield targets[0]
            else:
                stack += reversed(targets)
