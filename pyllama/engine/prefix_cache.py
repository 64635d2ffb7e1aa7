"""Pages of texts that were computed before, found again by their tokens.

A tree: a node is a page, its key the 32 token ids in it (fewer at the end of a text), its parent the page before. So
what several texts have in common is kept once, and a new text begins with the longest beginning the tree has, to the
token. Least recently used pages go first, from the ends of texts. Pages may also lie on disk (page_store.py); they
are read when a text needs them. Knows token ids and pages, not what they mean.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Tokens

import numpy as np

from pyllama.decoder.kv_cache import KVCache, Sequence
from pyllama.decoder.page_pool import POSITIONS
from pyllama.engine.page_store import PageStore, Stored
from pyllama.errors import BudgetError

_ID_NBYTES = 4


def _key(ids: Tokens[int]) -> bytes:
    return np.asarray(ids, "<i4").tobytes()


def _common(a: bytes, b: bytes) -> int:
    """Tokens that two keys have in common at their beginning."""
    n = min(len(a), len(b)) // _ID_NBYTES
    different = np.flatnonzero(np.frombuffer(a, "<i4", n) != np.frombuffer(b, "<i4", n))
    return int(different[0]) if len(different) else n


class _Node:
    """A page of a text.

    page    its number in the KV cache, or None
    stored  on disk, or None
    states  tokens of the page -> the slot with the state after them, in a model whose layers carry one
    stored_states  the same on disk
    """

    __slots__ = ("children", "key", "last_used", "page", "parent", "states", "stored", "stored_states")

    def __init__(self, key: bytes, parent: "_Node | None", last_used: int):
        self.key = key
        self.parent = parent
        self.children: dict[bytes, _Node] = {}
        self.page: int | None = None
        self.stored: Stored | None = None
        self.states: dict[int, int] = {}
        self.stored_states: dict[int, Stored] = {}
        self.last_used = last_used

    def __iter__(self) -> Iterator["_Node"]:
        """This node and all below it."""
        nodes = [self]
        while nodes:
            node = nodes.pop()
            yield node
            nodes += node.children.values()

    def path(self) -> list[bytes]:
        """Keys from the first page of the text to this one."""
        keys = []
        node = self
        while node.parent is not None:
            keys.append(node.key)
            node = node.parent
        return keys[::-1]


class PrefixCache:
    """The pages kept for texts to come. One thread, as with the KV cache they come from.

    cache  where pages come from and go back to
    store  keeps them over restarts, or None
    """

    def __init__(self, cache: KVCache, store: PageStore | None = None):
        self._cache = cache
        self._store = store
        self._root = _Node(b"", None, 0)
        self._clock = 0
        # Nodes with a page, least recently used first, and of those used at the same time the end of the text first:
        # so nothing stands before what goes on from it.
        self._kept: OrderedDict[_Node, None] = OrderedDict()
        self._unsaved: set[_Node] = set()  # those of them that have no file
        # Nodes with a page and a state, and which of its states, least recently used first.
        self._with_state: OrderedDict[tuple[_Node, int], None] = OrderedDict()
        cache.reclaim_states(self._evict_state)
        if store:
            states = []
            for stored in store.scan():  # least recently used first
                if stored.is_state:
                    states.append(stored)
                else:
                    self._add_stored(stored)
            for stored in states:
                self._add_stored_state(stored)

    @property
    def pages(self) -> int:
        """Pages in memory."""
        return len(self._kept)

    def evictable(self) -> int:
        """Pages that evict() could free one after the other."""
        return sum(self._held_here_alone(node) for node in self._kept)

    def _held_here_alone(self, node: _Node) -> bool:
        return node.page is not None and self._cache.pages.holders(node.page) == 1

    def begin(self, sequence: Sequence, ids: Tokens[int]) -> int:
        """Let an empty sequence hold the positions known for the beginning of ids; their number.

        Where layers carry a state, that is as far as there is one.
        """
        self._clock += 1
        if self._cache.states is not None:
            ids = ids[: self.known(ids)[1]]
        node, length = self._root, 0
        path: list[_Node] = []
        pages: list[int] = []
        try:
            while length < len(ids):
                key = _key(ids[length : length + POSITIONS])
                node, common = self._best_child(node, key)
                page = self._load(node) if common else None
                if page is None:
                    break
                self._cache.pages.hold(page)  # loading the next one may evict
                pages.append(page)
                path.append(node)
                length += common
                if common < POSITIONS:
                    break
            state = self._load_state(path[-1], length - POSITIONS * (len(path) - 1)) if path else None
            if self._cache.states is not None and state is None:  # a page of it is gone
                length = 0
            sequence.adopt(pages if length else [], length, state)
        finally:
            for page in pages:
                self._cache.pages.give_back(page)
        self._use(path)
        return length

    def known(self, ids: Tokens[int]) -> tuple[int, int]:
        """Tokens of the beginning of ids that the tree has; and those of them down to the last state there is."""
        node, length, found = self._root, 0, 0
        while length < len(ids):
            node, common = self._best_child(node, _key(ids[length : length + POSITIONS]))
            found = max((length + at for at in {*node.states, *node.stored_states} if at <= common), default=found)
            length += common
            if common < POSITIONS:
                break
        return length, found

    def _use(self, path: list[_Node]) -> None:
        """The nodes of a text, from its beginning, were used just now."""
        for node in reversed(path):
            node.last_used = self._clock
            self._kept.move_to_end(node)
            for at in node.states:
                self._with_state.move_to_end((node, at))

    def _best_child(self, node: _Node, key: bytes) -> tuple[_Node, int]:
        child = node.children.get(key)
        if child is not None:
            return child, len(key) // _ID_NBYTES
        best, most = node, 0
        for child in node.children.values():
            # The first token decides for nearly all: looking at it first saves the rest.
            if child.key[:_ID_NBYTES] == key[:_ID_NBYTES] and (common := _common(child.key, key)) > most:
                best, most = child, common
        return best, most

    def _load(self, node: _Node) -> int | None:
        """The node's page, from disk if need be; None if there is no room, or the file is damaged: then it is gone."""
        if node.page is not None:
            return node.page
        if node.stored is None:  # the file between two others is missing
            self._drop(node)
            return None
        if not self.has_room() and not self.evict():
            return None
        data = np.empty(self._cache.page_nbytes, np.uint8)
        if self._store is None or not self._store.load(node.stored, data):
            self._drop(node)
            return None
        page = self._cache.pages.take()
        try:
            self._cache.write(page, data)
            self._hold(node, page)
        finally:
            self._cache.pages.give_back(page)  # taking it made us a holder once already
        return page

    def _hold(self, node: _Node, page: int) -> None:
        node.page = page
        self._cache.pages.hold(page)
        self._kept[node] = None
        if node.stored is None:
            self._unsaved.add(node)

    def _let_go(self, node: _Node) -> None:
        page, node.page = node.page, None
        for at in list(node.states):
            self._drop_state(node, at)
        if page is not None:
            self._cache.pages.give_back(page)
            del self._kept[node]
            self._unsaved.discard(node)

    def _keep_state(self, node: _Node, at: int, slot: int) -> None:
        if at not in node.states:
            assert self._cache.states is not None
            self._cache.states.slots.hold(slot)
            node.states[at] = slot
            self._with_state[node, at] = None

    def _load_state(self, node: _Node, at: int) -> int | None:
        """The slot with a node's state, from disk if need be; None if there is no room, or the file is damaged."""
        states, pool, stored = self._cache.states, self._cache.state_pool, node.stored_states.get(at)
        if at in node.states or states is None or pool is None or self._store is None or stored is None:
            return node.states.get(at)
        try:
            slot = states.slots.take()
        except BudgetError:
            return None
        try:
            data = np.empty(pool.slot_nbytes, np.uint8)
            if self._store.load(stored, data):
                pool.write(slot, data)
                self._keep_state(node, at, slot)
            else:
                del node.stored_states[at]
        finally:
            states.slots.give_back(slot)
        return node.states.get(at)

    def _drop_state(self, node: _Node, at: int) -> None:
        assert self._cache.states is not None
        self._cache.states.slots.give_back(node.states.pop(at))
        del self._with_state[node, at]

    def _evict_state(self) -> bool:
        """Free the slot of the state that was used longest ago; False if there is none to free."""
        states = self._cache.states
        for node, at in self._with_state:
            if states is not None and states.slots.holders(node.states[at]) == 1:
                self._drop_state(node, at)
                return True
        return False

    def free(self) -> int | None:
        """Pages that the KV cache can hand out without evicting any; None: as many as there is memory for."""
        return self._cache.pages.spare

    def has_room(self, pages: int = 1) -> bool:
        """Whether the KV cache can hand out this many pages without evicting any."""
        free = self.free()
        return free is None or pages <= free

    def insert(self, ids: Tokens[int], pages: Tokens[int], states: Mapping[int, int] | None = None) -> None:
        """Keep the pages of a text: page i holds tokens ids[32 * i : 32 * i + 32].

        states  number of tokens -> slot with the state after them, where layers carry one
        """
        self._clock += 1
        node, path = self._root, []
        for index in range(-(-len(ids) // POSITIONS)):
            key = _key(ids[POSITIONS * index : POSITIONS * (index + 1)])
            child = node.children.get(key)
            if child is None:
                longer = [c for k, c in node.children.items() if k.startswith(key)]
                if len(key) < POSITIONS * _ID_NBYTES and longer:
                    if longer[0].page is not None:
                        path.append(longer[0])
                    break  # the end of this text is the middle of another
                child = _Node(key, node, self._clock)
                for old in [c for c in node.children.values() if key.startswith(c.key)]:
                    for at, slot in old.states.items():
                        self._keep_state(child, at, slot)
                    child.stored_states, old.stored_states = old.stored_states, {}
                    self._drop(old)  # the end of a text that now goes on
                node.children[key] = child
            if child.page is None:
                self._hold(child, pages[index])
            path.append(child)
            node = child
        for length, slot in (states or {}).items():
            index = (length - 1) // POSITIONS
            if 0 <= index < len(path) and length <= len(ids):
                self._keep_state(path[index], length - POSITIONS * index, slot)
        self._use(path)

    def evict(self) -> bool:
        """Free the page that was used longest ago; False if there is none to free."""
        for _ in range(len(self._kept)):
            node = next(iter(self._kept))
            if self._held_here_alone(node):
                self._let_go(node)
                if node.stored is None:
                    self._drop(node)
                return True
            self._kept.move_to_end(node)  # a text that is being written is used now
        return False

    def _drop(self, node: _Node) -> None:
        """Forget a node and all below it, in memory and on disk."""
        if node.parent is not None:
            del node.parent.children[node.key]
        for gone in node:
            self._let_go(gone)
            self._forget(gone)

    def _forget(self, node: _Node) -> None:
        """Delete the node's files, those of its states too."""
        if self._store is None:
            return
        for stored in (node.stored, *node.stored_states.values()):
            if stored is not None:
                self._store.delete(stored)
        node.stored, node.stored_states = None, {}
        if node.page is not None:
            self._unsaved.add(node)

    # --- on disk ---

    def _add_stored(self, stored: Stored) -> None:
        """A file found at the start; its parents come in any order, so nodes without a file may stand between."""
        self._clock += 1
        node = self._root
        for key in stored.path:
            node = node.children.setdefault(key, _Node(key, node, self._clock))
            node.last_used = self._clock
        node.stored = stored

    def save_one(self) -> bool:
        """Write one page that is in memory alone; False if there is none worth writing, or no store.

        A file makes room only for a page used later than it: else two pages could displace each other for ever.
        """
        if self._store is None or not self._unsaved:
            return False
        newest = max(self._unsaved, key=lambda node: (node.last_used, -len(node.path())))  # of a text, its beginning
        page = newest.page
        assert page is not None
        while not self._store.has_room():
            if not self._forget_file(newest.last_used):
                return False
        newest.stored = self._store.save(newest.path(), self._cache.read(page))
        if newest.stored is None:
            return False
        self._unsaved.discard(newest)
        return True

    def _add_stored_state(self, stored: Stored) -> None:
        """A file found at the start: of a page that was found as well, or it goes."""
        node = self._root
        for key in stored.path:
            node, common = self._best_child(node, key)
            if common * _ID_NBYTES < len(key):
                if self._store:
                    self._store.delete(stored)
                return
        node.stored_states[len(stored.path[-1]) // _ID_NBYTES] = stored

    def save_state(self) -> bool:
        """Write one state of a page that is on disk, those used last first; False if there is none worth writing."""
        pool = self._cache.state_pool
        if self._store is None or pool is None:
            return False
        for node, at in reversed(self._with_state):
            if at in node.stored_states or node.stored is None:
                continue
            while not self._store.has_room(state=True):
                if not self._forget_file(node.last_used):
                    return False
            path = node.path()
            saved = self._store.save([*path[:-1], path[-1][: at * _ID_NBYTES]], pool.read(node.states[at]), state=True)
            if saved is not None:
                node.stored_states[at] = saved
            return saved is not None  # what was forgotten may have been among those that are gone through
        return False

    def _forget_file(self, before: int) -> bool:
        """Delete the file used longest ago, from the ends of texts, if that was before a time."""
        files = [node for node in self._root if node.stored and not any(c.stored for c in node.children.values())]
        oldest = min(files, key=lambda node: node.last_used, default=None)
        if oldest is None or oldest.last_used >= before:
            return False
        self._forget(oldest)
        if oldest.page is None:
            self._drop(oldest)
        return True

    def close(self) -> None:
        """Tell the store what was used when. The pages stay where they are."""
        if self._store:
            stored = [(node.last_used, node.stored) for node in self._root if node.stored]
            stored += [(node.last_used, state) for node in self._root for state in node.stored_states.values()]
            self._store.touch([file for _, file in sorted(stored, key=lambda one: one[0])])
