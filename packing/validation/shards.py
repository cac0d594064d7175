"""The checks of one shard: schema, I1 to I3, I6 to I8 and I10, and I4 where the tokens folder is given."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.packing.buckets import Buckets
from seqmill.packing.schema import LIST_COLUMNS, NO_NEXT, REPEAT_COLUMN, SEGMENT_COLUMNS, hash_rows, packed_schema
from seqmill.packing.totals import RowTotals
from seqmill.packing.validation.files import check_metadata, open_shard
from seqmill.packing.validation.reference import Reference, digests
from seqmill.packing.validation.report import Findings, Violation
from seqmill.packing.validation.segments import Bools, Int64s, Lists, Segments, any_of


class Shard:
    """Checks the record batches of a shard, in order."""

    def __init__(
        self, name: str, first_row: int, pack: Mapping[str, Any], findings: Findings, reference: Reference | None
    ) -> None:
        self.name = name
        self.row = first_row  # of the next batch
        self.pack = pack
        self.findings = findings
        self.reference = reference
        self.has_repeats: bool = pack.get(REPEAT_COLUMN, False)
        optional = [REPEAT_COLUMN] if self.has_repeats else []
        self.list_columns = [*LIST_COLUMNS, *optional]
        self.segment_columns = [*SEGMENT_COLUMNS, *optional]

    def open(self, folder: Path, file: Mapping[str, Any]) -> pa.Table | None:
        """The shard's table, or None when it cannot be read or has another layout."""
        table = open_shard(folder, file, self.findings)
        if table is None:
            return None
        expected = packed_schema(self.pack["vocab_size"], {}, self.has_repeats)
        if table.schema.names != expected.names or table.schema.types != expected.types:
            self._report_file(
                "schema", f"columns {dict(zip(table.schema.names, map(str, table.schema.types), strict=True))}"
            )
            return None
        check_metadata(self.name, table.schema, self.pack, self.findings)
        return table

    def check(self, batch: pa.RecordBatch, number: int) -> tuple[Segments, RowTotals] | None:
        """Check one record batch; its segments and counts, or None when its segments make no sense.

        Args:
            number: of the shard in the manifest.
        """
        if batch.num_rows == 0:
            return None
        if any(_has_nulls(column) for column in batch.columns):
            self._report_file("schema", "the file has nulls")
            self.row += batch.num_rows
            return None
        lists = {name: Lists.of(batch.column(name)) for name in self.list_columns}
        if any(batch.column(name).offsets[0].as_py() for name in self.list_columns):
            self._report_file("I8", "the list offsets of a record batch do not begin at 0")
        numbers = {
            name: batch.column(name).to_numpy(zero_copy_only=True)
            for name in batch.schema.names
            if name not in self.list_columns
        }
        self._check_rows(lists, numbers)
        found = self._check_segments(lists, numbers, number) if self._has_bounds(lists) else None
        if self.reference and found:
            found = self._compare(found[0], lists), found[1]
        self.row += batch.num_rows
        return found

    def _report_file(self, invariant: str, detail: str) -> None:
        self.findings.add(Violation(invariant, self.name, None, 1, detail))

    def _report(self, invariant: str, detail: str, wrong: Bools) -> None:
        self.findings.rows(invariant, self.name, self.row, wrong, detail)

    def _compare(self, segments: Segments, lists: Mapping[str, Lists]) -> Segments:
        """I4 against the documents: the tokens of unshared ids here, those of shared ids as digests for later."""
        assert self.reference is not None
        tokens, offsets = lists["input_ids"].values, lists["doc_id"].offsets
        has_flags = self.has_repeats and self.reference.store.has_repeats
        if self.has_repeats != self.reference.store.has_repeats:
            self._report_file("I4", f"only one of the rows and the tokens folder has the column {REPEAT_COLUMN}")
        is_repeat = lists[REPEAT_COLUMN].values if has_flags else np.zeros(len(segments.row), np.bool_)
        lengths = segments.stop - segments.start
        shared = self.reference.is_shared(segments.doc_id)
        alone, of_alone = ~shared, np.repeat(~shared, lengths)
        wrong = np.zeros(len(shared), np.bool_)
        wrong[alone] = self.reference.differs(
            segments.doc_id[alone], segments.start[alone], segments.stop[alone], tokens[of_alone], is_repeat[alone]
        )
        self._report("I4", "tokens or is_repeat are not those of the tokens folder", any_of(wrong, offsets))
        digest = np.zeros(len(shared), np.uint64)
        digest[shared] = digests(tokens[~of_alone], lengths[shared], is_repeat[shared])
        return replace(segments, digest=digest)

    def _check_rows(self, lists: Mapping[str, Lists], numbers: Mapping[str, np.ndarray]) -> None:
        """I3, I7 and the row hashes: what needs no segments."""
        ids, cu = lists["input_ids"], lists["cu_seqlens"]
        rows = np.arange(self.row, self.row + len(ids.counts))
        self._report("I7", "row_id is not the number of the row", numbers["row_id"] != rows)
        if ids.values.max(initial=0) >= self.pack["vocab_size"]:
            outside = ids.values >= self.pack["vocab_size"]
            self._report(
                "I3", f"a token is not below the vocabulary of {self.pack['vocab_size']}", any_of(outside, ids.offsets)
            )
        hashes = hash_rows(ids.values, ids.offsets, cu.values, cu.offsets)
        self._report("I10", "the row does not match its hash", numbers["xxh3"] != hashes)

    def _has_bounds(self, lists: Mapping[str, Lists]) -> bool:
        """I1, and whether every segment column has one element per segment (I2); False stops the further checks."""
        cu, ids = lists["cu_seqlens"], lists["input_ids"]
        too_short = cu.counts < 2
        self._report("I1", "cu_seqlens has no segment", too_short)
        if too_short.any():
            return False
        steps = np.diff(cu.values.astype(np.int64), append=0)
        steps[cu.offsets[1:] - 1] = 1  # from the last bound of a row to the first of the next: not a segment
        wrong = (cu.values[cu.offsets[:-1]] != 0) | any_of(steps <= 0, cu.offsets)
        wrong |= (cu.values[cu.offsets[1:] - 1] != ids.counts) | (ids.counts > self.pack["capacity"])
        detail = f"cu_seqlens do not run from 0 to the row's tokens, or these exceed {self.pack['capacity']}"
        self._report("I1", detail, wrong)
        if "buckets" in self.pack:
            buckets, rows = Buckets.of(self.pack["buckets"]), np.arange(self.row, self.row + len(wrong))
            room = buckets.room_of(rows)
            is_piece = (ids.counts == room) & (cu.counts == 2)
            other = np.where(buckets.is_leftover(rows), ids.counts > room, ~is_piece)
            self._report("I1", "the row is not one piece of its bucket's length", other)
        uneven = np.zeros(len(wrong), np.bool_)
        for name in self.segment_columns:
            uneven |= lists[name].counts != cu.counts - 1
        self._report("I2", "a segment column does not have one element per segment", uneven)
        return not (wrong.any() or uneven.any())

    def _check_segments(
        self, lists: Mapping[str, Lists], numbers: Mapping[str, np.ndarray], number: int
    ) -> tuple[Segments, RowTotals]:
        """I2 and I6, for segments whose bounds are sound."""
        ids, cu = lists["input_ids"], lists["cu_seqlens"]
        offsets = lists["seq_lengths"].offsets
        bounds: Int64s = np.delete(np.diff(cu.values.astype(np.int64)), cu.offsets[1:-1] - 1)
        begins = offsets[:-1]
        ends = np.concatenate([[0], np.cumsum(bounds)])
        following = lists["next_token"].values.astype(np.int64)
        n_tokens, sum_sq = np.add.reduceat(bounds, begins), np.add.reduceat(bounds * bounds, begins)
        longest = np.maximum.reduceat(bounds, begins)
        wrong = any_of(lists["seq_lengths"].values != bounds, offsets) | (numbers["n_tokens"] != n_tokens)
        wrong |= (numbers["sum_sq"] != sum_sq) | (numbers["max_seqlen"] != longest)
        self._report("I2", "seq_lengths, max_seqlen, n_tokens or sum_sq do not follow from cu_seqlens", wrong)
        n_loss = n_tokens - np.add.reduceat(following == NO_NEXT, begins, dtype=np.int64)
        self._report(
            "I6", "n_loss_tokens is not the number of tokens with a target", numbers["n_loss_tokens"] != n_loss
        )
        rows = len(n_tokens)
        start = lists["doc_offset"].values
        segments = Segments(
            file=np.full(len(bounds), number, np.int32),
            row=np.repeat(np.arange(self.row, self.row + rows), np.diff(offsets)),
            doc_id=lists["doc_id"].values,
            start=start,
            stop=start + bounds,
            first_token=ids.values[ends[:-1]].astype(np.int64),
            next_token=following,
            doc_targets=lists["doc_targets"].values,
            digest=np.zeros(len(bounds), np.uint64),
        )
        is_repeat = lists[REPEAT_COLUMN].values if self.has_repeats else None
        totals = RowTotals(
            rows=rows,
            tokens=int(ends[-1]),
            loss_tokens=int(n_loss.sum()),
            segments=len(bounds),
            sum_sq=int(sum_sq.sum()),
            max_row_sum_sq=int(sum_sq.max()),
            min_seqlen=int(bounds.min()),
            max_seqlen=int(longest.max()),
            repeat_tokens=None if is_repeat is None else int(bounds[is_repeat].sum()),
        )
        return segments, totals


def _has_nulls(column: pa.Array) -> bool:
    """Whether any value is null, those inside lists too."""
    return bool(column.null_count or (pa.types.is_list(column.type) and column.values.null_count))
