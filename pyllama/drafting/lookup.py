"""The drafter that costs nothing: what followed the same tokens before, in the prompt, the answer or a prediction.

Prompt look-up decoding (A. Saxena, 2023): code that is edited, names, quotations and tables repeat. Of each text the
places are indexed by the tokens before them; the longest match wins. How often matches of each length were right is
counted while running, and is the probability of what they propose.
"""

from collections.abc import Sequence

from pyllama.drafting.proposals import Loaded, Wanted
from pyllama.generation.task import OnLayer, Task
from pyllama.generation.tree import ROOT, Tree

LENGTHS = (12, 6, 3, 2)  # tokens that must match, longest first
DEPTH = 24
_WAYS = 3  # different continuations of one match
_PRIOR = {12: 0.9, 6: 0.8, 3: 0.6, 2: 0.4}  # guesses at a token's probability, worth so many tokens seen:
_PRIOR_WEIGHT = 8


class _Text:
    """A text and where each run of tokens ends in it."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}

    def extend(self, ids: Sequence[int]) -> None:
        for token_id in ids:
            self.ids.append(token_id)
            end = len(self.ids)
            for length in LENGTHS:
                if length <= end:
                    places = self._ends.setdefault(tuple(self.ids[end - length :]), [])
                    places.append(end)
                    del places[:-_WAYS]

    def after(self, tail: Sequence[int], length: int) -> list[list[int]]:
        """What followed the last `length` tokens of a text wherever they stood, latest first."""
        places = self._ends.get(tuple(tail[len(tail) - length :]), []) if length <= len(tail) else []
        return [self.ids[end : end + DEPTH] for end in reversed(places) if end < len(self.ids)]


class _Known:
    """What is known for one task: its own text, and the prediction that came with it."""

    def __init__(self, task: Task):
        self.own, self.predicted = _Text(), _Text()
        self.predicted.extend(task.answer.prediction)
        # What was proposed last: at which length of the text, by a match of how many tokens.
        self.proposal: tuple[int, int, list[int]] | None = None


class LookUp:
    """Proposes what stood after the same tokens before."""

    name = "look-up"
    loaded = Loaded()

    def __init__(self) -> None:
        self._known: dict[Task, _Known] = {}
        self._right = {length: _PRIOR[length] * _PRIOR_WEIGHT for length in LENGTHS}
        self._tried = dict.fromkeys(LENGTHS, float(_PRIOR_WEIGHT))

    def trees(self, tasks: Sequence[Task], wanted: Wanted, on_layer: OnLayer | None = None) -> list[Tree]:
        return [self._tree(task, wanted) for task in tasks]

    def _tree(self, task: Task, wanted: Wanted) -> Tree:
        known = self._known.get(task)
        if known is None:
            known = self._known[task] = _Known(task)
        self._learn(task, known)
        ids = known.own.ids
        tree = Tree()
        for length, ways in self._matches(task, known, ids):
            each = self._right[length] / self._tried[length]
            if tree:  # a shorter match, or an older one, beside a better
                each /= 2
            for way in ways[: 1 if wanted.chain else _WAYS]:
                node, probability = ROOT, 1.0
                for token_id in way:
                    probability *= each
                    at = tree.child(node, token_id)
                    if at is None:
                        if probability < wanted.least or len(tree) >= wanted.nodes:
                            break
                        at = tree.add(node, token_id, probability)
                    node = at
                if known.proposal is None:  # the best of them is what is learned from
                    known.proposal = len(ids), length, way
                each /= 2
            if wanted.chain and tree:
                break
        return tree

    def _matches(self, task: Task, known: _Known, ids: list[int]) -> list[tuple[int, list[list[int]]]]:
        """(tokens that match, what followed them), the best first; of the two longest lengths that match at all."""
        found = []
        if not task.answer.token_ids and task.answer.prediction:
            found.append((LENGTHS[0], [task.answer.prediction[:DEPTH]]))
        for length in LENGTHS:
            # An answer's own tokens, not those of its prompt, are looked for in what it was predicted to be.
            ways = known.predicted.after(task.answer.token_ids, length) + known.own.after(ids, length)
            if ways:
                found.append((length, ways))
            if len(found) == 2:
                break
        return found

    def _learn(self, task: Task, known: _Known) -> None:
        """Count how far the last proposal was right; take the tokens that are new."""
        known.own.extend(task.answer.tokens(len(known.own.ids)))
        if known.proposal is None:
            return
        start, length, way = known.proposal
        known.proposal = None
        came = known.own.ids[start : start + len(way)]
        for proposed, token_id in zip(way, came):
            self._tried[length] += 1
            if proposed != token_id:
                break
            self._right[length] += 1
        if self._tried[length] > 256:  # what was lately counts more
            self._tried[length] /= 2
            self._right[length] /= 2

    def forget(self, task: Task) -> None:
        self._known.pop(task, None)

    def close(self) -> None:
        self._known.clear()
