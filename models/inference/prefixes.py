"""Pages of prompts that were seen before, found by their ids.

A trie whose every edge is the ids of one full page: two prompts share the pages of their common beginning, rounded
down to whole pages. A page of the trie has the trie as an owner, besides the sequences that it serves; when pages run
short, those that no sequence uses are given back, the one that was used longest ago first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from seqmill.models.inference.pages import PagePool


@dataclass(eq=False)
class _Node:
    """A page behind the pages of its ancestors."""

    page: int
    parent: "_Node | None"
    ids: tuple[int, ...]  # of its positions
    children: dict[tuple[int, ...], "_Node"] = field(default_factory=dict)


class PrefixCache:
    """The trie; its pages are those of one pool."""

    def __init__(self, pool: PagePool, page_tokens: int) -> None:
        self._pool = pool
        self._page_tokens = page_tokens
        self._roots: dict[tuple[int, ...], _Node] = {}
        self._by_age: OrderedDict[_Node, None] = OrderedDict()  # last used first

    def __len__(self) -> int:
        """Pages in the trie."""
        return len(self._by_age)

    def find(self, prompt: Sequence[int]) -> list[int]:
        """The pages of the longest beginning of `prompt` that is known, but for its last token: a model has to be shown
        at least one to go on."""
        pages = []
        children = self._roots
        for ids in self._full_pages(prompt, len(prompt) - 1):
            node = children.get(ids)
            if node is None:
                break
            pages.append(node.page)
            children = node.children
        return pages

    def add(self, prompt: Sequence[int], pages: Sequence[int], filled: int) -> None:
        """Remember the full pages among the first `filled` positions of a prompt, which lie in `pages`."""
        parent, children = None, self._roots
        for ids, page in zip(self._full_pages(prompt, filled), pages, strict=False):
            node = children.get(ids)
            if node is None:
                node = children[ids] = _Node(page, parent, ids)
                self._pool.share([page])
            self._by_age[node] = None
            self._by_age.move_to_end(node)
            parent, children = node, node.children

    def evictable(self, kept: Sequence[int] = ()) -> int:
        """Pages that only the trie owns, those of `kept` not counted."""
        used = set(kept)
        return sum(self._pool.owners(node.page) == 1 and node.page not in used for node in self._by_age)

    def evict(self, count: int) -> None:
        """Give back pages that no sequence uses until the pool has `count` free ones, or there are none."""
        while self._pool.free < count:
            leaf = next((n for n in self._by_age if not n.children and self._pool.owners(n.page) == 1), None)
            if leaf is None:
                return
            self._remove(leaf)

    def clear(self) -> None:
        """Forget everything."""
        for node in list(self._by_age):
            self._pool.give_back([node.page])
        self._by_age.clear()
        self._roots.clear()

    def _remove(self, leaf: _Node) -> None:
        siblings = self._roots if leaf.parent is None else leaf.parent.children
        del siblings[leaf.ids]
        del self._by_age[leaf]
        self._pool.give_back([leaf.page])

    def _full_pages(self, prompt: Sequence[int], tokens: int) -> list[tuple[int, ...]]:
        size = self._page_tokens
        return [tuple(prompt[begin : begin + size]) for begin in range(0, tokens - size + 1, size)]
