"""Keys and values of live sequences, in pages that sequences may share.

Heads that keep the same positions are a group with pages of its own: where a head sees a window only, the pages behind
it are given back. Position p of a sequence lies in slot `table[p // P] * P + p % P` of each group, P being the tokens
of a page:

    P = 4, table [7, 2, 5]    position 6 -> page 2 -> slot 2 * 4 + 2 = 10

Tensor names end in their axes: N heads of a group, of all layers, S slots, K key-value heads of one layer, E numbers
per head, T tokens.
"""
# ruff: noqa: N803, N806, N815 (the axes are capital letters)

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqmill.models.attention import FULL, Pattern, layer_patterns
from seqmill.models.config import ModelConfig
from seqmill.models.inference.order_free import Layout
from seqmill.models.inference.pages import PagePool
from seqmill.models.inference.policy import CachePolicy, Head

Int64s = npt.NDArray[np.int64]

GONE = -1  # in a table: the page was given back, since no later token sees it


class Mean(NamedTuple):
    """Keys and values that a sequence has let go, of one group."""

    end: int  # first position that is not among them, or 0
    tokens: int  # how many
    key_sum_NE: Tensor  # float32
    value_sum_NE: Tensor  # float32


@dataclass(eq=False)
class CachedSequence:
    """A sequence whose first positions lie in a cache."""

    tables: list[list[int]]  # of each group: the page of every P positions, or GONE
    length: int = 0  # positions that are filled
    taken: list[int] = field(default_factory=list)  # of each group: pages in the table that it took itself
    prompt: int = 0  # positions that are read as the model was trained to; a policy is for those behind
    means: dict[int, Mean] = field(default_factory=dict)  # by group
    layout: Layout | None = None  # of a prompt with members that do not see each other

    def positions(self, places: Int64s) -> Int64s:
        """int64[n]: where the tokens at these places stand, for rotary positions; their places, without a layout."""
        if self.layout is None:
            return places
        inside = np.minimum(places, self.prompt - 1)
        return np.where(places < self.prompt, self.layout.position[inside], places - self.layout.skipped)


@dataclass(frozen=True)
class Group:
    """Heads that see the same of a sequence."""

    pattern: Pattern  # as they were trained
    policy: CachePolicy | None  # of generated tokens, if it lets go of anything here
    heads: tuple[Head, ...]

    @property
    def sees_all(self) -> bool:
        """Whether every position stays."""
        return self.pattern.window is None and self.policy is None

    def kept(self, is_generated: bool) -> Pattern:
        """What a token sees here, but for sinks that are attended to by themselves since they have moved near."""
        if self.policy is None or not is_generated:
            return self.pattern
        return Pattern(self.policy.window, 0 if self.policy.is_near else self.policy.sinks)

    def let_go(self, sequence: CachedSequence) -> tuple[int, int]:
        """The positions that no token from the end of a sequence on sees: from, to (which may be less)."""
        if self.pattern.window is not None:
            return self.pattern.sinks, sequence.length + 1 - self.pattern.window
        if self.policy is not None and sequence.length >= sequence.prompt:
            return self.policy.sinks, sequence.length + 1 - self.policy.window
        return 0, 0

    def pages_at_once(self, prompt: int, length: int, step: int, page_tokens: int) -> int:
        """The most pages that a sequence of `length` tokens, the prompt's included, holds at one time if at most `step`
        come at once."""
        whole = -(-length // page_tokens)
        if self.sees_all:
            return whole
        seen = self.pattern if self.policy is None else Pattern(self.policy.window, self.policy.sinks)
        assert seen.window is not None
        near = -(-(seen.window + step) // page_tokens) + 1 - (-seen.sinks // page_tokens)
        return min(whole, near if self.policy is None else max(near, -(-prompt // page_tokens)))


def groups_of(config: ModelConfig, policy: CachePolicy | None = None) -> tuple[Group, ...]:
    """The heads of a model by what they see; those that see all come first."""
    members: dict[tuple[Pattern, CachePolicy | None], list[Head]] = {}
    for layer, pattern in enumerate(layer_patterns(config)):
        for head in range(config.kv_heads):
            has_policy = policy is not None and pattern == FULL and (layer, head) not in policy.full_heads
            members.setdefault((pattern, policy if has_policy else None), []).append((layer, head))
    groups = [Group(pattern, kept, tuple(heads)) for (pattern, kept), heads in members.items()]
    return tuple(sorted(groups, key=lambda group: not group.sees_all))


class Place(NamedTuple):
    """Where the heads of a layer lie that belong to one group."""

    group: int
    first: int  # of the group's heads
    heads: tuple[int, ...]  # key-value heads of the layer, ascending


class KVCache:
    """Pages of keys and values, and the sequences that hold them."""

    def __init__(
        self,
        config: ModelConfig,
        pages: Sequence[int],
        page_tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        policy: CachePolicy | None = None,
    ) -> None:
        """`pages` of each group of `groups_of(config, policy)`, each of `page_tokens` positions."""
        self.groups = groups_of(config, policy)
        self.page_tokens = page_tokens
        self.pools = [PagePool(count) for count in pages]
        self._places = [self._places_of(layer) for layer in range(config.layers)]
        shapes = [
            (len(group.heads), count * page_tokens, config.head_dim)
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
            begin, end = group.let_go(sequence)
            if begin >= end:
                continue
            if group.policy is not None and group.policy.has_mean:
                sequence.means[g] = self._with_mean(g, sequence, begin, end)
            table, size = sequence.tables[g], self.page_tokens
            gone = [page for page in range(-(-begin // size), min(end // size, len(table))) if table[page] != GONE]
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
            if group.sees_all:
                self.pools[g].share(table)
                tables.append(list(table))
                taken.append(0)
            else:
                tables.append([page if page == GONE else self._copy(g, page) for page in table])
                taken.append(sum(page != GONE for page in table))
        return CachedSequence(tables, sequence.length, taken, sequence.prompt, dict(sequence.means), sequence.layout)

    def close(self, sequence: CachedSequence) -> None:
        """Give back all pages of a sequence, which is empty then."""
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            pool.give_back(page for page in table if page != GONE)
            table.clear()
        sequence.length, sequence.taken = 0, [0 for _ in self.groups]
        sequence.means.clear()

    def slots(self, group: int, sequence: CachedSequence, positions: Int64s) -> Int64s:
        """int64[n]: where these positions lie."""
        table = np.array(sequence.tables[group], np.int64)
        return table[positions // self.page_tokens] * self.page_tokens + positions % self.page_tokens

    def places(self, layer: int) -> list[Place]:
        """The groups that the heads of a layer belong to."""
        return self._places[layer]

    def write(self, place: Place, slots_T: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """Put the keys and values of T tokens, of the heads of a place, into their slots."""
        heads = slice(place.first, place.first + len(place.heads))
        self.keys[place.group][heads].index_copy_(1, slots_T, k_TKE.transpose(0, 1))
        self.values[place.group][heads].index_copy_(1, slots_T, v_TKE.transpose(0, 1))

    def read(self, place: Place) -> tuple[Tensor, Tensor]:
        """k_KSE and v_KSE of all slots of a place."""
        heads = slice(place.first, place.first + len(place.heads))
        return self.keys[place.group][heads], self.values[place.group][heads]

    def move(self, sequence: CachedSequence, sources: Int64s, target: int) -> None:
        """Let the positions from `target` on hold what the positions `sources`, which ascend behind it, hold."""
        for g in range(len(self.groups)):
            old = torch.from_numpy(self.slots(g, sequence, sources)).to(self.keys[g].device)
            new = self.slots(g, sequence, np.arange(target, target + len(sources)))
            for tensor in (self.keys[g], self.values[g]):
                tensor.index_copy_(1, torch.from_numpy(new).to(tensor.device), tensor.index_select(1, old))

    def _places_of(self, layer: int) -> list[Place]:
        found = []
        for g, group in enumerate(self.groups):
            mine = [n for n, (of, _) in enumerate(group.heads) if of == layer]
            if mine:
                found.append(Place(g, mine[0], tuple(group.heads[n][1] for n in mine)))
        return found

    def _with_mean(self, group: int, sequence: CachedSequence, begin: int, end: int) -> Mean:
        """The mean with the positions up to `end`, which are still there."""
        empty = self.keys[group].new_zeros(len(self.keys[group]), self.keys[group].shape[2], dtype=torch.float32)
        before = sequence.means.get(group, Mean(begin, 0, empty, empty))
        slots = torch.from_numpy(self.slots(group, sequence, np.arange(before.end, end))).to(empty.device)
        key_sum_NE, value_sum_NE = (
            total_NE + tensor.index_select(1, slots).float().sum(1)
            for total_NE, tensor in zip(before[2:], (self.keys[group], self.values[group]), strict=True)
        )
        return Mean(end, before.tokens + len(slots), key_sum_NE, value_sum_NE)

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
