"""Keys and values of live sequences, in pages that sequences may share.

Layers (and heads) that keep the same positions are a group with pages of its own: where a layer sees a window only,
the pages behind it are given back. Position p of a sequence lies in slot `table[p // P] * P + p % P` of each group, P
being the tokens of a page:

    P = 4, table [7, 2, 5]    position 6 -> page 2 -> slot 2 * 4 + 2 = 10

Tensor names end in their axes: N heads of all layers of a group, S slots, K key-value heads of one layer, E numbers
per head, T tokens.
"""
# ruff: noqa: N803 (the axes are capital letters)

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from seqmill.models.attention import Pattern, layer_patterns
from seqmill.models.config import ModelConfig
from seqmill.models.inference.pages import PagePool

GONE = -1  # in a table: the page was given back, since no later token sees it


@dataclass(eq=False)
class CachedSequence:
    """A sequence whose first positions lie in a cache."""

    tables: list[list[int]]  # of each group: the page of every P positions, or GONE
    length: int = 0  # positions that are filled
    taken: list[int] = field(default_factory=list)  # of each group: pages in the table that it took itself


@dataclass(frozen=True)
class Group:
    """Layers that see the same of a sequence."""

    pattern: Pattern
    layers: tuple[int, ...]

    def pages_at_once(self, length: int, step: int, page_tokens: int) -> int:
        """The most pages that a sequence of `length` tokens holds at one time if at most `step` come at once."""
        whole = -(-length // page_tokens)
        if self.pattern.window is None:
            return whole
        near = -(-(self.pattern.window + step) // page_tokens) + 1
        return min(whole, -(-self.pattern.sinks // page_tokens) + near)


def groups_of(config: ModelConfig) -> tuple[Group, ...]:
    """The layers of a model by what they see; those that see all come first."""
    patterns = layer_patterns(config)
    kinds = sorted(set(patterns), key=lambda pattern: pattern.window is not None)
    return tuple(Group(kind, tuple(i for i, pattern in enumerate(patterns) if pattern == kind)) for kind in kinds)


class KVCache:
    """Pages of keys and values, and the sequences that hold them."""

    def __init__(
        self,
        config: ModelConfig,
        pages: Sequence[int],
        page_tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`pages` of each group of `groups_of(config)`, each of `page_tokens` positions."""
        self.groups = groups_of(config)
        self.page_tokens = page_tokens
        self.kv_heads = config.kv_heads
        self.pools = [PagePool(count) for count in pages]
        self.place = {layer: (g, i) for g, group in enumerate(self.groups) for i, layer in enumerate(group.layers)}
        shapes = [
            (len(group.layers) * config.kv_heads, count * page_tokens, config.head_dim)
            for group, count in zip(self.groups, pages, strict=True)
        ]
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]  # of each group: NSE
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]  # of each group: NSE

    def open(self) -> CachedSequence:
        """An empty sequence."""
        return CachedSequence([[] for _ in self.groups], 0, [0 for _ in self.groups])

    def reserve(self, sequence: CachedSequence, tokens: int) -> None:
        """Have pages for the next `tokens` positions, of which no other sequence owns any."""
        size = self.page_tokens
        needed = -(-(sequence.length + tokens) // size)
        for g, (pool, table) in enumerate(zip(self.pools, sequence.tables, strict=True)):
            partial = sequence.length // size  # the page that is filled in part, if one is
            if partial < len(table) and pool.owners(table[partial]) > 1:
                table[partial] = self._own_copy(g, table[partial])
                sequence.taken[g] += 1
            sequence.taken[g] += max(0, needed - len(table))
            table += [pool.take() for _ in range(needed - len(table))]

    def commit(self, sequence: CachedSequence, tokens: int) -> None:
        """Count the next `tokens` positions as filled; pages that no later token sees are given back."""
        sequence.length += tokens
        for g, group in enumerate(self.groups):
            if group.pattern.window is None:
                continue
            first = max(0, sequence.length + 1 - group.pattern.window) // self.page_tokens  # page still seen
            table = sequence.tables[g]
            begin = -(-group.pattern.sinks // self.page_tokens)
            gone = [page for page in range(begin, min(first, len(table))) if table[page] != GONE]
            self.pools[g].give_back(table[page] for page in gone)
            sequence.taken[g] -= len(gone)
            for page in gone:
                table[page] = GONE

    def trim(self, sequence: CachedSequence) -> None:
        """Give back pages that were reserved behind the last filled position."""
        kept = -(-sequence.length // self.page_tokens)
        for g, (pool, table) in enumerate(zip(self.pools, sequence.tables, strict=True)):
            pool.give_back(table[kept:])
            sequence.taken[g] -= len(table[kept:])
            del table[kept:]

    def fork(self, sequence: CachedSequence) -> CachedSequence:
        """Another sequence that begins as this one. Pages of groups that see all are shared until one of the two
        writes into the last; others are copied, since each sequence gives them back in its own time."""
        tables = []
        taken = []
        for g, (group, table) in enumerate(zip(self.groups, sequence.tables, strict=True)):
            if group.pattern.window is None:
                self.pools[g].share(table)
                tables.append(list(table))
                taken.append(0)
            else:
                tables.append([page if page == GONE else self._copy(g, page) for page in table])
                taken.append(sum(page != GONE for page in table))
        return CachedSequence(tables, sequence.length, taken)

    def close(self, sequence: CachedSequence) -> None:
        """Give back all pages of a sequence, which is empty then."""
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            pool.give_back(page for page in table if page != GONE)
            table.clear()
        sequence.length, sequence.taken = 0, [0 for _ in self.groups]

    def slots(self, group: int, sequence: CachedSequence, positions: np.ndarray) -> np.ndarray:
        """int64[n]: where these positions lie."""
        table = np.array(sequence.tables[group], np.int64)
        return table[positions // self.page_tokens] * self.page_tokens + positions % self.page_tokens

    def write(self, layer: int, slots_T: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """Put the keys and values of T tokens into their slots of the layer's group."""
        group, heads = self._heads(layer)
        self.keys[group][heads].index_copy_(1, slots_T, k_TKE.transpose(0, 1))
        self.values[group][heads].index_copy_(1, slots_T, v_TKE.transpose(0, 1))

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """k_KSE and v_KSE of all slots of a layer's group."""
        group, heads = self._heads(layer)
        return self.keys[group][heads], self.values[group][heads]

    def move(self, sequence: CachedSequence, sources: np.ndarray, target: int) -> None:
        """Let the positions from `target` on hold what the positions `sources`, which ascend behind it, hold."""
        for g in range(len(self.groups)):
            old = torch.from_numpy(self.slots(g, sequence, sources)).to(self.keys[g].device)
            new = self.slots(g, sequence, np.arange(target, target + len(sources)))
            for tensor in (self.keys[g], self.values[g]):
                tensor.index_copy_(1, torch.from_numpy(new).to(tensor.device), tensor.index_select(1, old))

    def _heads(self, layer: int) -> tuple[int, slice]:
        group, nth = self.place[layer]
        return group, slice(nth * self.kv_heads, (nth + 1) * self.kv_heads)

    def _own_copy(self, group: int, page: int) -> int:
        """A copy of a shared page, in exchange for the share in it."""
        copy = self._copy(group, page)
        self.pools[group].give_back([page])
        return copy

    def _copy(self, group: int, page: int) -> int:
        copy, size = self.pools[group].take(), self.page_tokens
        for tensor in (self.keys[group], self.values[group]):
            tensor[:, copy * size : (copy + 1) * size] = tensor[:, page * size : (page + 1) * size]
        return copy
