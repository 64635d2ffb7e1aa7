"""What a drafter proposes after a text: a tree of tokens. A pass computes every node, an answer keeps one path.

Nodes are added parents before children and best first, so the first of them are a smaller tree, and the best one.
Source of the idea: Y. Leviathan et al., "Fast inference from transformers via speculative decoding", 2023, for chains;
X. Miao et al., "SpecInfer", 2024, for trees.
"""

from collections.abc import Iterator

ROOT = -1


class Tree:
    """Proposed tokens.

    tokens         ids, by node
    parents        nodes, each less than its child; ROOT: the token follows the text itself
    probabilities  guesses that the node and all above it will be drawn, by node
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.probabilities: list[float] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, probability: float) -> int:
        """The number of this node: a new one, or the one that has been there for the same token."""
        node = self._children.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.probabilities.append(probability)
        return node

    def child(self, parent: int, token: int) -> int | None:
        """The node that proposes this token there, or None."""
        return self._children.get((parent, token))

    def node(self, parent: int, token: int) -> int:
        """The node that proposes this token there. Raises KeyError."""
        return self._children[parent, token]

    def path(self, node: int) -> list[int]:
        """Token ids from the first one to this node's; none for ROOT."""
        ids = []
        while node != ROOT:
            ids.append(self.tokens[node])
            node = self.parents[node]
        return ids[::-1]

    def branches(self) -> Iterator[list[int]]:
        """The path to each leaf, in order of the leaves."""
        inner = set(self.parents)
        return (self.path(node) for node in range(len(self)) if node not in inner)

    def first(self, count: int) -> "Tree":
        """The best `count` nodes alone."""
        smaller = Tree()
        for node in range(min(count, len(self))):
            smaller.add(self.parents[node], self.tokens[node], self.probabilities[node])
        return smaller

    def best_branch(self) -> "Tree":
        """The most probable path alone: at each fork the node that came first."""
        chain, at, last = Tree(), ROOT, ROOT
        for node in range(len(self)):
            if self.parents[node] == at:
                last, at = chain.add(last, self.tokens[node], self.probabilities[node]), node
        return chain
