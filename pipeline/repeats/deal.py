"""The first pass of the sampler's shuffle: the chosen rows of one part and all their copies, as sorted runs.

The second pass is `seqmill.pipeline.mixing.shuffle.gather_part`, which reads the same files as it does of a mix: a run
is sorted by an order key, and for each run the rows are known at which the parts of the output begin.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.packing.schema import REPEAT_COLUMN
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.mixing.columns import COPY, as_one_batch, bounded_slices, bounded_takes, row_bytes
from seqmill.pipeline.mixing.keys import order_keys
from seqmill.pipeline.mixing.plan import BIN_BITS, largest_part
from seqmill.pipeline.mixing.shuffle import KEY
from seqmill.pipeline.records import BATCH_BYTES
from seqmill.pipeline.repeats.choose import LEFT_OUT, REPEATED
from seqmill.pipeline.repeats.config import SampleConfig
from seqmill.pipeline.repeats.windows import Int64s, UInt64s, cut, window_ids, window_schema
from seqmill.storage import read_json, write_arrow

_STARTS = pa.schema({"start": pa.int64()})


def deal_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write NAME.arrow, the runs of one part one after the other with columns is_repeat, copy and the order key, and
    NAME.starts.arrow, for each run the row where each output part begins, and where the run ends."""
    config = SampleConfig(**payload["config"])
    plan = read_json(Path(payload["plan"]["path"]))
    begins = np.array(plan["part_starts"], np.uint64) << np.uint64(64 - BIN_BITS)
    piece_bytes = largest_part(config.memory_mb)
    schema = run_schema(Path(payload["part"]["path"]), config)
    starts: list[Int64s] = []

    def runs() -> Iterator[pa.RecordBatch]:
        written = 0
        for piece, ids in _pieces(payload, config, piece_bytes):
            for rows, copies, keys in _runs(piece, ids, config, piece_bytes):
                starts.append(written + np.append(np.searchsorted(keys, begins), len(keys)))
                done = 0
                for taken in bounded_takes(piece, rows, min(piece_bytes, BATCH_BYTES)):
                    here = slice(done, done + len(taken))
                    own = [pa.array(keys[here]), pa.array(copies[here].astype(np.uint32))]
                    yield pa.record_batch([*taken.columns, *own], schema=schema)
                    done += len(taken)
                written += done

    name = payload["name"]
    rows = write_arrow(out / f"{name}.arrow", schema, runs())
    flat = pa.array(np.concatenate([np.empty(0, np.int64), *starts]))
    write_arrow(out / f"{name}.starts.arrow", _STARTS, [pa.record_batch([flat], schema=_STARTS)])
    return UnitResult({f"{name}.arrow": rows, f"{name}.starts.arrow": len(flat)})


def run_schema(part: Path, config: SampleConfig) -> pa.Schema:
    """The columns of runs: those of the part, start in mode "sequence", is_repeat, order key, copy."""
    with pa.ipc.open_stream(pa.memory_map(str(part))) as reader:
        schema = reader.schema.remove_metadata()
    schema = schema if config.seq_len is None else window_schema(schema)
    for name, type_ in ((REPEAT_COLUMN, pa.bool_()), (KEY, pa.uint64()), (COPY, pa.uint32())):
        schema = schema.append(pa.field(name, type_))
    return schema


def _pieces(
    payload: Mapping[str, Any], config: SampleConfig, most_bytes: int
) -> Iterator[tuple[pa.RecordBatch, UInt64s]]:
    """The chosen rows of a part with is_repeat, and what is hashed of each, at most `most_bytes` (or one row)."""
    with pa.memory_map(payload["choice"]["path"]) as file, pa.ipc.open_stream(file) as reader:
        choices = reader.read_all()["choice"].to_numpy()[payload["first"] : payload["last"]]
    pending: list[pa.RecordBatch] = []
    ids: list[UInt64s] = []
    filled = done = 0
    for whole in document_batches(Path(payload["part"]["path"])):
        for batch in bounded_slices(whole, most_bytes):
            rows, index = (
                (batch, np.zeros(len(batch), np.int64)) if config.seq_len is None else cut(batch, config.seq_len)
            )
            own = choices[done : done + len(rows)]
            done += len(rows)
            chosen = np.flatnonzero(own != LEFT_OUT)
            if not len(chosen):
                continue
            rows = rows.take(pa.array(chosen)).append_column(REPEAT_COLUMN, pa.array(own[chosen] == REPEATED))
            size = int(row_bytes(rows).sum())
            if pending and filled + size > most_bytes:
                yield as_one_batch(pa.Table.from_batches(pending)), np.concatenate(ids)
                pending, ids, filled = [], [], 0
            pending.append(rows)
            ids.append(window_ids(rows.column("doc_id").to_numpy(), index[chosen]))
            filled += size
    assert done == len(choices), (payload["name"], done, len(choices))
    if pending:
        yield as_one_batch(pa.Table.from_batches(pending)), np.concatenate(ids)


def _runs(
    piece: pa.RecordBatch, ids: UInt64s, config: SampleConfig, most_bytes: int
) -> Iterator[tuple[Int64s, Int64s, UInt64s]]:
    """(row, copy, order key) of every row of each run, sorted by key: one run of all first copies, and as few as the
    budget allows of the others."""
    everything = np.arange(len(piece))
    repeated = np.flatnonzero(piece.column(REPEAT_COLUMN).to_numpy(zero_copy_only=False))
    at_once = max(1, most_bytes // max(1, int(row_bytes(piece)[repeated].sum())))
    others = range(1, config.repeats) if len(repeated) else range(0)
    groups = [(everything, range(1))] + [
        (repeated, others[first : first + at_once]) for first in range(0, len(others), at_once)
    ]
    for rows, copies in groups:
        keys = np.concatenate([order_keys(ids[rows], copy, config.seed) for copy in copies])
        order = np.argsort(keys)
        yield np.tile(rows, len(copies))[order], np.repeat(np.array(copies), len(rows))[order], keys[order]
