"""Drafters of every kind of character, for tests: seers, fools, liars and those with nothing to say."""

import random

from pyllama.generation import ROOT, Tree


class Scripted:
    """A Drafting (generation/task.py) that proposes what a function of (task, room) says.

    told  (tokens, steps) of every pass
    """

    name = "scripted"
    draft_s = 0.0
    branch_pages = None

    def __init__(self, tree_of):
        self._tree_of = tree_of
        self.told = []
        self.forgotten = []

    def propose(self, tasks, room, on_layer=None):
        return [self._tree_of(task, room // len(tasks)) for task in tasks]

    def passed(self, tasks, tokens, seconds, steps):
        assert seconds >= 0
        self.told.append((tokens, steps))

    def forget(self, task):
        self.forgotten.append(task)

    def close(self):
        pass


def chain(ids):
    tree, node = Tree(), ROOT
    for token_id in ids:
        node = tree.add(node, token_id, 0.5)
    return tree


def seer(texts, depth=8):
    """Knows each answer: texts is {prompt: token ids}."""

    def tree_of(task, room):
        known = texts[tuple(task.answer.prompt_ids)]
        return chain(known[len(task.answer.token_ids) :][: min(depth, room)])

    return Scripted(tree_of)


def half_seer(texts, seed, vocab_size, nodes=24):
    """Grows random trees, in which the truth is one branch, for some way."""
    rng = random.Random(seed)

    def tree_of(task, room):
        known = texts[tuple(task.answer.prompt_ids)][len(task.answer.token_ids) :]
        tree = chain(known[: rng.randrange(0, 9)])
        while len(tree) < min(nodes, room):
            parent = rng.randrange(-1, len(tree))
            tree.add(parent, rng.randrange(vocab_size), rng.random())
        return tree

    return Scripted(tree_of)


def fool(seed):
    """Proposes rubbish: ids that are none, doubled ones, far too many, or nothing."""
    rng = random.Random(seed)

    def tree_of(task, room):
        tree = Tree()
        for _ in range(rng.choice((0, 1, 5, 200))):
            token = rng.choice((-1, -(2**40), 2**31, 10**9, rng.randrange(300), rng.randrange(300)))
            tree.add(rng.randrange(-1, len(tree)), token, rng.choice((0.0, 1.0, float("nan"))))
        return tree

    return Scripted(tree_of)
