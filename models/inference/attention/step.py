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

from seqmill.models.attention import Pattern, Segments
from seqmill.models.inference.attention.gathered import attend_gathered
from seqmill.models.inference.attention.merge import merge
from seqmill.models.inference.attention.paged import PagedPieces, attend_paged
from seqmill.models.inference.attention.spans import Span, shared_spans
from seqmill.models.inference.cache import GONE, CachedSequence, KVCache
from seqmill.models.transformer import LayerAttention, Model, packed_attention

Int64s = npt.NDArray[np.int64]

SMALL = 32  # new tokens of a piece that the kernel on pages takes; it reads keys once for all of them
_MOST_TREE = 64  # tokens of a tree of drafts: its ancestors are bits of a number

_Attended = tuple[Tensor, Tensor]  # out_THE, lse_TH


@dataclass(frozen=True, eq=False)
class Piece:
    """New tokens of one sequence; the cache has pages for them (KVCache.reserve)."""

    sequence: CachedSequence
    tokens: Int64s  # ids
    parents: Int64s | None = None  # of a tree: the token of the piece that each one follows, -1 for the cached ones

    @cached_property
    def depths(self) -> Int64s:
        """int64[n]: the position of each token behind the cached ones."""
        if self.parents is None:
            return np.arange(len(self.tokens))
        depths = np.zeros(len(self.tokens), np.int64)
        for index, parent in enumerate(self.parents.tolist()):
            depths[index] = depths[parent] + 1 if parent >= 0 else 0
        return depths

    @cached_property
    def ancestors(self) -> npt.NDArray[np.uint64]:
        """uint64[n]: bit j of number i: whether token i sees token j of the piece; for at most 64 tokens."""
        seen = np.zeros(len(self.tokens), np.uint64)
        for index in range(len(self.tokens)):
            parent = index - 1 if self.parents is None else int(self.parents[index])
            before = seen[parent] if parent >= 0 else np.uint64(0)
            seen[index] = before | np.uint64(1 << index)
        return seen

    @property
    def is_fresh(self) -> bool:
        """Whether it is the beginning of its sequence."""
        return self.sequence.length == 0 and self.parents is None

    @property
    def is_small(self) -> bool:
        """Whether the kernel on pages takes it."""
        return not self.is_fresh and len(self.tokens) <= (SMALL if self.parents is None else _MOST_TREE)


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
        return np.concatenate([piece.sequence.length + piece.depths for piece in self.pieces])

    def _attention(self) -> LayerAttention:
        cache = self.cache
        device = self.model.device
        slots = [torch.from_numpy(self._slots(group)).to(device) for group in range(len(cache.groups))]
        known = sum(not piece.is_fresh for piece in self.pieces)
        rows = int(self.first_rows[known])  # of pieces that have something before them
        parts = [self._parts(group, known) for group in range(len(cache.groups))]
        fresh = [len(piece.tokens) for piece in self.pieces[known:]]
        inside = packed_attention(Segments.of(fresh, device), self.backend, self.model.config) if fresh else None

        def attention(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
            group, _ = cache.place[layer]
            cache.write(layer, slots[group], k_TKE, v_TKE)
            outputs = []
            if rows:
                keys_values = cache.layer(layer)
                out_THE, lse_TH = parts[group][0](q_THE[:rows], *keys_values)
                for part in parts[group][1:]:
                    out_THE, lse_TH = merge(out_THE, lse_TH, *part(q_THE[:rows], *keys_values))
                outputs.append(out_THE.to(q_THE.dtype))
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

    def _parts(self, group: int, known: int) -> list[Callable[[Tensor, Tensor, Tensor], _Attended]]:
        """What the rows of the first `known` pieces attend to in the layers of a group, in parts to be merged."""
        if not known:
            return []
        cache, pieces = self.cache, self.pieces[:known]
        size, pattern = cache.page_tokens, cache.groups[group].pattern
        spans: list[Span] = []
        begins = np.zeros(known, np.int64)
        if pattern.window is None:
            tables = [piece.sequence.tables[group] for piece in pieces]
            spans, begins = shared_spans(tables, [piece.sequence.length // size for piece in pieces], size)
        own = self._own(group, pieces, begins * size)
        return [own, *(self._spanned(span) for span in spans)]

    def _own(
        self, group: int, pieces: Sequence[Piece], begins: Int64s
    ) -> Callable[[Tensor, Tensor, Tensor], _Attended]:
        """What each piece attends to from its position `begins` on."""
        small = sum(piece.is_small for piece in pieces)
        rows = int(self.first_rows[small])
        parts: list[Callable[[Tensor, Tensor, Tensor], _Attended]] = []
        if small:
            on_host = self.model.device.type == "cpu" and self.cache.keys[group].dtype == torch.float32
            make = self._paged if on_host else self._gathered
            parts.append(make(group, pieces[:small], begins[:small], 0))
        for nth in range(small, len(pieces)):
            parts.append(self._gathered(group, pieces[nth : nth + 1], begins[nth : nth + 1], nth))
        bounds = [0, *([rows] if small else []), *self.first_rows[small + 1 : len(pieces) + 1].tolist()]

        def attend(q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            found = [
                part(q_THE[low:high], k_KSE, v_KSE)
                for part, low, high in zip(parts, bounds[:-1], bounds[1:], strict=True)
            ]
            if len(found) == 1:
                return found[0]
            return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found])

        return attend

    def _paged(
        self, group: int, pieces: Sequence[Piece], begins: Int64s, first: int
    ) -> Callable[[Tensor, Tensor, Tensor], _Attended]:
        size, pattern = self.cache.page_tokens, self.cache.groups[group].pattern
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
            positions=np.concatenate([piece.sequence.length + piece.depths for piece in pieces]),
            ancestors=np.concatenate([piece.ancestors for piece in pieces]),
            window=pattern.window,
            sinks=pattern.sinks,
        )
        return lambda q_THE, k_KSE, v_KSE: attend_paged(q_THE, k_KSE, v_KSE, paged, size)

    def _gathered(
        self, group: int, pieces: Sequence[Piece], begins: Int64s, first: int
    ) -> Callable[[Tensor, Tensor, Tensor], _Attended]:
        """The same with keys side by side; places without a key point to the piece's own first new token."""
        del first
        pattern, device = self.cache.groups[group].pattern, self.model.device
        seen = [self._seen(group, piece, int(begin)) for piece, begin in zip(pieces, begins, strict=True)]
        queries, keys = max(len(piece.tokens) for piece in pieces), max(map(len, seen))
        slot_BL = np.empty((len(pieces), keys), np.int64)
        mask_BQL = np.zeros((len(pieces), queries, keys), bool)
        row_BQ = np.zeros((len(pieces), queries), np.int64)
        place_T = []
        row = 0
        for b, (piece, places) in enumerate(zip(pieces, seen, strict=True)):
            count = len(piece.tokens)
            slots = self.cache.slots(group, piece.sequence, places)
            slot_BL[b] = slots[-count]
            slot_BL[b, : len(slots)] = slots
            mask_BQL[b, :count, : len(slots)] = _visible(piece, places, pattern)
            row_BQ[b, :count] = np.arange(row, row + count)
            place_T.append(b * queries + np.arange(count))
            row += count
        slots_BL, masks_BQL, rows_BQ, places_T = (
            torch.from_numpy(x).to(device) for x in (slot_BL, mask_BQL, row_BQ, np.concatenate(place_T))
        )

        def attend(q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            k_BLKE, v_BLKE = (x[:, slots_BL].permute(1, 2, 0, 3) for x in (k_KSE, v_KSE))
            out_BQHE, lse_BQH = attend_gathered(q_THE[rows_BQ], k_BLKE, v_BLKE, masks_BQL)
            return out_BQHE.flatten(0, 1)[places_T], lse_BQH.flatten(0, 1)[places_T]

        return attend

    def _seen(self, group: int, piece: Piece, begin: int) -> Int64s:
        """The positions of the cache, from `begin` on, that a token of the piece may see, and then the piece's own."""
        pattern, length = self.cache.groups[group].pattern, piece.sequence.length
        cached = np.arange(begin, length)
        if pattern.window is not None:
            cached = cached[(cached > length - pattern.window) | (cached < pattern.sinks)]
            table = np.array(piece.sequence.tables[group])
            cached = cached[table[cached // self.cache.page_tokens] != GONE]
        return np.concatenate([cached, length + np.arange(len(piece.tokens))])

    def _spanned(self, span: Span) -> Callable[[Tensor, Tensor, Tensor], _Attended]:
        """All rows of a span's pieces attend to its pages in one product of matrices."""
        size, device = self.cache.page_tokens, self.model.device
        rows = np.concatenate([np.arange(*self.first_rows[[piece, piece + 1]]) for piece in span.pieces])
        slots = (np.array(span.pages)[:, None] * size + np.arange(size)).ravel()
        is_run = bool((np.diff(slots) == 1).all())
        rows_R, slots_L = torch.from_numpy(rows).to(device), torch.from_numpy(slots).to(device)
        begin, end = int(slots[0]), int(slots[-1]) + 1

        def attend(q_THE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> _Attended:
            k_KLE, v_KLE = (x[:, begin:end] if is_run else x.index_select(1, slots_L) for x in (k_KSE, v_KSE))
            found, found_lse = attend_gathered(
                q_THE.index_select(0, rows_R)[None], k_KLE.transpose(0, 1)[None], v_KLE.transpose(0, 1)[None]
            )
            out_THE = torch.zeros(q_THE.shape, dtype=torch.float32, device=device).index_copy_(0, rows_R, found[0])
            lse_TH = torch.full(q_THE.shape[:2], -torch.inf, device=device).index_copy_(0, rows_R, found_lse[0])
            return out_THE, lse_TH

        return attend


def _visible(piece: Piece, places: Int64s, pattern: Pattern) -> npt.NDArray[np.bool_]:
    """bool[n, len(places)]: which of these positions each token of the piece sees; the last n are the piece's own."""
    count, length = len(piece.tokens), piece.sequence.length
    known = np.concatenate([places[:-count], length + piece.depths])
    seen = pattern.visible(torch.from_numpy(length + piece.depths)[:, None], torch.from_numpy(known)).numpy().copy()
    if piece.parents is not None:
        for index in range(count):
            for other in range(count):
                seen[index, len(places) - count + other] &= bool(int(piece.ancestors[index]) >> other & 1)
    return seen
