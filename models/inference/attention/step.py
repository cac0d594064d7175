"""The pieces of a step, and what their tokens attend to, as the decoder's LayerAttention.

A step's rows are ordered by how they are attended to:

    small     a few new tokens behind what the cache holds (decoding, verified drafts): a kernel on pages
    long      many new tokens behind what the cache holds (a prompt that goes on, or whose beginning is known)
    fresh     whole beginnings of prompts: documents end to end, by the packed backends that training uses

The keys and values of all rows are written before any row attends, layer by layer, so a prompt may attend to pages
that another prompt of the same step fills.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqmill.models.attention import FULL, Pattern, Segments
from seqmill.models.inference.attention.gathered import attend_fused, attend_gathered
from seqmill.models.inference.attention.let_go import attend_to_means, attend_to_near_sinks, spread
from seqmill.models.inference.attention.merge import merge
from seqmill.models.inference.attention.spans import Span, shared_spans
from seqmill.models.inference.cache import GONE, CachedSequence, KVCache, Place
from seqmill.models.inference.policy import CachePolicy
from seqmill.models.rotary import rotary_table
from seqmill.models.transformer import LayerAttention, Model, packed_attention

Int64s = npt.NDArray[np.int64]

SMALL = 32  # new tokens of a piece that the kernel on pages takes; it reads keys once for all of them
_MOST_TREE = 64  # tokens of a tree of drafts: its ancestors are bits of a number

_FIRST, _ITSELF = np.zeros(1, np.int64), np.ones(1, np.uint64)  # of a single token, the usual piece

_Attended = tuple[Tensor, Tensor]  # out_THE, lse_TH
_Part = Callable[[int, Place, Tensor, Tensor, Tensor], _Attended]  # of layer, place, q_THE, k_KSE, v_KSE


@dataclass(frozen=True, eq=False)
class Piece:
    """New tokens of one sequence; the cache has pages for them (KVCache.reserve)."""

    sequence: CachedSequence
    tokens: Int64s  # ids
    parents: Int64s | None = None  # of a tree: the token of the piece that each one follows, -1 for the cached ones

    @cached_property
    def depths(self) -> Int64s:
        """int64[n]: the position of each token behind the cached ones."""
        if len(self.tokens) == 1:
            return _FIRST
        if self.parents is None:
            return np.arange(len(self.tokens))
        depths = np.zeros(len(self.tokens), np.int64)
        for index, parent in enumerate(self.parents.tolist()):
            depths[index] = depths[parent] + 1 if parent >= 0 else 0
        return depths

    @property
    def places(self) -> Int64s:
        """int64[n]: of each token in its sequence; those of a tree may share one."""
        return self.sequence.length + self.depths

    @cached_property
    def ancestors(self) -> npt.NDArray[np.uint64]:
        """uint64[n]: bit j of number i: whether token i sees token j of the piece; for at most 64 tokens."""
        if len(self.tokens) == 1:
            return _ITSELF
        seen = np.zeros(len(self.tokens), np.uint64)
        for index in range(len(self.tokens)):
            parent = index - 1 if self.parents is None else int(self.parents[index])
            before = seen[parent] if parent >= 0 else np.uint64(0)
            seen[index] = before | np.uint64(1 << index)
        return seen

    @property
    def is_generated(self) -> bool:
        """Whether it lies behind the prompt."""
        return self.sequence.length >= self.sequence.prompt > 0

    @property
    def shareable(self) -> int:
        """Positions before it that it sees all of."""
        return 0 if self.has_members else self.sequence.length

    @property
    def has_members(self) -> bool:
        """Whether it is of a prompt whose members do not see each other."""
        return self.sequence.layout is not None and not self.is_generated

    @property
    def is_fresh(self) -> bool:
        """Whether it is the beginning of its sequence."""
        return self.sequence.length == 0 and self.parents is None and not self.has_members

    @property
    def is_small(self) -> bool:
        """Whether the kernel on pages takes it."""
        return not (self.is_fresh or self.has_members) and len(self.tokens) <= (
            SMALL if self.parents is None else _MOST_TREE
        )


@dataclass(frozen=True, eq=False)
class Step:
    """Pieces in the order of their rows, and what one forward pass over them needs."""

    model: Model
    cache: KVCache
    pieces: tuple[Piece, ...]  # small, long, fresh
    first_rows: Int64s  # [pieces + 1]: where each piece's rows begin, and the number of rows
    backend: str  # of fresh pieces

    @classmethod
    def of(cls, model: Model, cache: KVCache, pieces: Sequence[Piece], backend: str) -> "Step":
        """A step over these pieces, in an order of its own."""
        ordered = sorted(pieces, key=lambda piece: (piece.is_fresh, not piece.is_small))
        sizes = [len(piece.tokens) for piece in ordered]
        return cls(model, cache, tuple(ordered), np.cumsum([0, *sizes]), backend)

    def run(self) -> Tensor:
        """hidden_TD of all rows; the cache holds their keys and values then, though no sequence counts them yet
        (KVCache.commit)."""
        ids = np.concatenate([piece.tokens for piece in self.pieces])
        ids_T, positions_T = (torch.from_numpy(x).to(self.model.device) for x in (ids, self.positions))
        return self.model.hidden(ids_T, positions_T, self._attention())

    @cached_property
    def positions(self) -> Int64s:
        """int64[T]: of every row in its sequence."""
        return np.concatenate([piece.sequence.positions(piece.places) for piece in self.pieces])

    def _attention(self) -> LayerAttention:
        cache, device = self.cache, self.model.device
        slots = [torch.from_numpy(self._slots(group)).to(device) for group in range(len(cache.groups))]
        known = sum(not piece.is_fresh for piece in self.pieces)
        rows = int(self.first_rows[known])  # of pieces that have something before them
        parts = [self._parts(group, known) for group in range(len(cache.groups))]
        fresh = [len(piece.tokens) for piece in self.pieces[known:]]
        inside = packed_attention(Segments.of(fresh, device), self.backend, self.model.config) if fresh else None

        def attention(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            places = cache.places(layer)
            outputs = []
            for place in places:
                k_of, v_of = (x if len(places) == 1 else x[:, list(place.heads)] for x in (k_TKE, v_TKE))
                cache.write(place, slots[place.group], k_of, v_of)
            if rows:
                q_TKGE = q_THE[:rows].unflatten(1, (k_TKE.shape[1], -1))
                out_TKGE = torch.empty_like(q_TKGE)
                for place in places:
                    heads = slice(None) if len(places) == 1 else list(place.heads)
                    found = _merged(parts[place.group], layer, place, q_TKGE[:, heads].flatten(1, 2), cache)
                    out_TKGE[:, heads] = found.unflatten(1, (len(place.heads), -1)).to(q_THE.dtype)
                outputs.append(out_TKGE.flatten(1, 2))
            if inside is not None:
                outputs.append(inside(layer, q_THE[rows:], k_TKE[rows:], v_TKE[rows:]))
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        return attention

    def _slots(self, group: int) -> Int64s:
        """Where the keys and values of all rows go."""
        return np.concatenate(
            [
                self.cache.slots(group, piece.sequence, piece.sequence.length + np.arange(len(piece.tokens)))
                for piece in self.pieces
            ]
        )

    def _parts(self, group: int, known: int) -> list[_Part]:
        """What the rows of the first `known` pieces attend to in the heads of a group, in parts to be merged."""
        pieces, size = self.pieces[:known], self.cache.page_tokens
        spans: list[Span] = []
        begins = np.zeros(known, np.int64)
        if self.cache.groups[group].sees_all:
            tables = [piece.sequence.tables[group] for piece in pieces]
            spans, begins = shared_spans(tables, [piece.shareable // size for piece in pieces], size)
        own = self._own(group, pieces, begins * size) if pieces else []
        return [*own, *(self._spanned(span) for span in spans), *self._let_go(group, pieces)]

    def _own(self, group: int, pieces: Sequence[Piece], begins: Int64s) -> list[_Part]:
        """What each piece attends to from its position `begins` on: the small ones in one call, or in two where some
        are read otherwise than others."""
        on_host = self.model.device.type == "cpu" and self.cache.keys[group].dtype == torch.float32
        make = self._paged if on_host else self._gathered
        batches: list[tuple[Callable[..., _Part], int, int]] = []
        for nth, piece in enumerate(pieces):
            pattern = self._pattern(group, piece)
            if piece.is_small and batches and batches[-1][0] == make:
                before = pieces[nth - 1]
                if before.is_small and self._pattern(group, before) == pattern:
                    batches[-1] = (make, batches[-1][1], nth + 1)
                    continue
            is_plain = pattern == FULL and not piece.has_members and piece.parents is None
            batches.append((make if piece.is_small else self._long if is_plain else self._gathered, nth, nth + 1))
        calls = [call(group, pieces[low:high], begins[low:high], low) for call, low, high in batches]
        bounds = [(int(self.first_rows[low]), int(self.first_rows[high])) for _, low, high in batches]

        def attend(layer: int, place: Place, q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            found = [
                call(layer, place, q_THE[low:high], k_KSE, v_KSE)
                for call, (low, high) in zip(calls, bounds, strict=True)
            ]
            if len(found) == 1:
                return found[0]
            return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found])

        return [attend]

    def _pattern(self, group: int, piece: Piece) -> Pattern:
        return self.cache.groups[group].kept(piece.is_generated)

    def _paged(self, group: int, pieces: Sequence[Piece], begins: Int64s, first: int) -> _Part:
        from seqmill.models.inference.attention.paged import PagedPieces, attend_paged  # here: it brings numba along

        size, pattern = self.cache.page_tokens, self._pattern(group, pieces[0])
        tables = [piece.sequence.tables[group] for piece in pieces]
        table = np.zeros((len(pieces), max(map(len, tables))), np.int32)
        for row, pages in zip(table, tables, strict=True):
            row[: len(pages)] = pages
        paged = PagedPieces(
            first_row=self.first_rows[first : first + len(pieces)] - self.first_rows[first],
            tokens=np.array([len(piece.tokens) for piece in pieces]),
            start=np.array([piece.sequence.length for piece in pieces]),
            begin=begins,
            tables=table,
            positions=np.concatenate([piece.places for piece in pieces]),
            ancestors=np.concatenate([piece.ancestors for piece in pieces]),
            window=pattern.window,
            sinks=pattern.sinks,
        )
        return lambda layer, place, q_THE, k_KSE, v_KSE: attend_paged(q_THE, k_KSE, v_KSE, paged, size)

    def _long(self, group: int, pieces: Sequence[Piece], begins: Int64s, first: int) -> _Part:
        """One piece of many tokens: all that is cached, and then its own, causally."""
        del first
        (piece,), (begin,) = pieces, begins.tolist()
        cached = torch.from_numpy(self.cache.slots(group, piece.sequence, np.arange(begin, piece.sequence.length)))
        own = torch.from_numpy(self.cache.slots(group, piece.sequence, piece.places))
        cached_L, own_L = cached.to(self.model.device), own.to(self.model.device)

        def attend(layer: int, place: Place, q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            del layer, place
            k_TKE, v_TKE = (x.index_select(1, own_L).transpose(0, 1) for x in (k_KSE, v_KSE))
            out_THE, lse_TH = attend_fused(q_THE, k_TKE, v_TKE, is_causal=True)
            if not len(cached_L):
                return out_THE, lse_TH
            k_LKE, v_LKE = (x.index_select(1, cached_L).transpose(0, 1) for x in (k_KSE, v_KSE))
            return merge(out_THE, lse_TH, *attend_fused(q_THE, k_LKE, v_LKE, is_causal=False))

        return attend

    def _gathered(self, group: int, pieces: Sequence[Piece], begins: Int64s, first: int) -> _Part:
        """The same with keys side by side, those of pieces together whose numbers of keys are alike."""
        seen = [self._seen(group, piece, int(begin)) for piece, begin in zip(pieces, begins, strict=True)]
        rows = self.first_rows[first : first + len(pieces) + 1] - self.first_rows[first]
        alike = [self._gathered_alike(group, pieces, seen, rows, chosen) for chosen in _of_like_lengths(seen)]

        def attend(layer: int, place: Place, q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            del layer, place
            found = [call(q_THE, k_KSE, v_KSE) for call in alike]
            out_THE = q_THE.new_empty(q_THE.shape, dtype=torch.float32)
            lse_TH = out_THE.new_empty(q_THE.shape[:2])
            for rows_T, out, lse in found:
                out_THE[rows_T], lse_TH[rows_T] = out, lse
            return out_THE, lse_TH

        return attend

    def _gathered_alike(
        self, group: int, pieces: Sequence[Piece], seen: Sequence[Int64s], rows: Int64s, chosen: Sequence[int]
    ) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The rows of the chosen pieces, and what they attend to; places without a key point to the piece's own first
        new token."""
        pattern, device = self._pattern(group, pieces[0]), self.model.device
        queries, keys = max(len(pieces[nth].tokens) for nth in chosen), max(len(seen[nth]) for nth in chosen)
        slot_BL = np.empty((len(chosen), keys), np.int64)
        mask_BQL = np.zeros((len(chosen), queries, keys), bool)
        row_BQ = np.zeros((len(chosen), queries), np.int64)
        place_T, row_T = list[Int64s](), list[Int64s]()
        for b, nth in enumerate(chosen):
            piece, count = pieces[nth], len(pieces[nth].tokens)
            slots = self.cache.slots(group, piece.sequence, seen[nth])
            slot_BL[b] = slots[-count]
            slot_BL[b, : len(slots)] = slots
            mask_BQL[b, :count, : len(slots)] = _visible(piece, seen[nth], pattern)
            row_T.append(np.arange(rows[nth], rows[nth + 1]))
            row_BQ[b, :count] = row_T[-1]
            place_T.append(b * queries + np.arange(count))
        slots_BL, masks_BQL, rows_BQ, places_T, rows_T = (
            torch.from_numpy(x).to(device)
            for x in (slot_BL, mask_BQL, row_BQ, np.concatenate(place_T), np.concatenate(row_T))
        )

        def attend(q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            k_BLKE, v_BLKE = (x[:, slots_BL].permute(1, 2, 0, 3) for x in (k_KSE, v_KSE))
            out_BQHE, lse_BQH = attend_gathered(q_THE[rows_BQ], k_BLKE, v_BLKE, masks_BQL)
            return rows_T, out_BQHE.flatten(0, 1)[places_T], lse_BQH.flatten(0, 1)[places_T]

        return attend

    def _seen(self, group: int, piece: Piece, begin: int) -> Int64s:
        """The positions of the cache, from `begin` on, that a token of the piece may see, and then the piece's own."""
        pattern, length = self._pattern(group, piece), piece.sequence.length
        cached = np.arange(begin, length)
        if pattern.window is not None:
            cached = cached[(cached > length - pattern.window) | (cached < pattern.sinks)]
            table = np.array(piece.sequence.tables[group])
            cached = cached[table[cached // self.cache.page_tokens] != GONE]
        return np.concatenate([cached, length + np.arange(len(piece.tokens))])

    def _spanned(self, span: Span) -> _Part:
        """All rows of a span's pieces attend to its pages in one product of matrices."""
        size, device = self.cache.page_tokens, self.model.device
        rows = np.concatenate([np.arange(*self.first_rows[[piece, piece + 1]]) for piece in span.pieces])
        slots = (np.array(span.pages)[:, None] * size + np.arange(size)).ravel()
        is_run = bool((np.diff(slots) == 1).all())
        rows_R, slots_L = torch.from_numpy(rows).to(device), torch.from_numpy(slots).to(device)
        begin, end = int(slots[0]), int(slots[-1]) + 1

        def attend(layer: int, place: Place, q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            del layer, place
            k_KLE, v_KLE = (x[:, begin:end] if is_run else x.index_select(1, slots_L) for x in (k_KSE, v_KSE))
            q_RHE = q_THE.index_select(0, rows_R)
            return spread(
                q_THE, rows_R, *attend_fused(q_RHE, k_KLE.transpose(0, 1), v_KLE.transpose(0, 1), is_causal=False)
            )

        return attend

    def _let_go(self, group: int, pieces: Sequence[Piece]) -> list[_Part]:
        """What a policy leaves of positions that it lets go of."""
        policy, parts = self.cache.groups[group].policy, list[_Part]()
        if policy is None:
            return parts
        generated = [nth for nth, piece in enumerate(pieces) if piece.is_generated]
        if policy.is_near and policy.sinks and generated:
            parts.append(self._near_sinks(group, policy, generated))
        averaged = [nth for nth in generated if group in pieces[nth].sequence.means]
        if averaged:
            means = [pieces[nth].sequence.means[group] for nth in averaged]
            rows_R = torch.from_numpy(self.first_rows[averaged]).to(self.model.device)  # a piece is one token then
            parts.append(lambda layer, place, q_THE, k_KSE, v_KSE: attend_to_means(place, q_THE, rows_R, means))
        return parts

    def _near_sinks(self, group: int, policy: CachePolicy, generated: Sequence[int]) -> _Part:
        """The sinks that lie behind the window of a generated token, at the distance that they would have in a text
        without what was let go."""
        config, device = self.model.config, self.model.device
        pieces = [self.pieces[nth] for nth in generated]
        counts = [len(piece.tokens) for piece in pieces]
        rows = np.concatenate([np.arange(*self.first_rows[[nth, nth + 1]]) for nth in generated])
        positions = np.concatenate([piece.places for piece in pieces])
        sinks = np.array([np.minimum(np.arange(policy.sinks), piece.sequence.length - 1) for piece in pieces])
        slots = np.array([self.cache.slots(group, p.sequence, each) for p, each in zip(pieces, sinks, strict=True)])
        is_behind = positions[:, None] - np.arange(policy.sinks) >= policy.window
        moved = np.minimum(positions, policy.sinks + policy.window - 1) - positions
        rows_R, moved_R, slots_RL, mask_RL = (
            torch.from_numpy(x).to(device) for x in (rows, moved, np.repeat(slots, counts, axis=0), is_behind)
        )
        turned = rotary_table(moved_R, config.head_dim, config.rope_theta, config.rope_scaling)

        def attend(layer: int, place: Place, q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            del place
            table = turned if config.has_rotary(layer) else None
            return attend_to_near_sinks(q_THE, k_KSE, v_KSE, rows_R, slots_RL, mask_RL, table)

        return attend


def _merged(parts: Sequence[_Part], layer: int, place: Place, q_THE: Tensor, cache: KVCache) -> Tensor:
    """out_THE over the keys of all parts."""
    keys_values = cache.read(place)
    out_THE, lse_TH = parts[0](layer, place, q_THE, *keys_values)
    for part in parts[1:]:
        out_THE, lse_TH = merge(out_THE, lse_TH, *part(layer, place, q_THE, *keys_values))
    return out_THE


def _visible(piece: Piece, places: Int64s, pattern: Pattern) -> npt.NDArray[np.bool_]:
    """bool[n, len(places)]: which of these positions each token of the piece sees; the last n are the piece's own."""
    count = len(piece.tokens)
    known = np.concatenate([places[:-count], piece.places])
    seen = pattern.visible(torch.from_numpy(piece.places)[:, None], torch.from_numpy(known)).numpy().copy()
    if piece.has_members and piece.sequence.layout is not None:
        seen &= piece.sequence.layout.visible(piece.places, known)
    if piece.parents is not None:
        own = piece.ancestors[:, None] >> np.arange(count, dtype=np.uint64) & np.uint64(1)
        seen[:, len(places) - count :] &= own.astype(bool)
    return seen


def _of_like_lengths(seen: Sequence[Int64s]) -> list[list[int]]:
    """Numbers of pieces, those together of which none has less than half of the keys of another."""
    order = sorted(range(len(seen)), key=lambda nth: -len(seen[nth]))
    classes: list[list[int]] = []
    for nth in order:
        if classes and 2 * len(seen[nth]) >= len(seen[classes[-1][0]]):
            classes[-1].append(nth)
        else:
            classes.append([nth])
    return classes
