"""The plan of a mix, made once from the surveys: copies per source, and the hash ranges of the output parts.

The plan is small whatever the corpus: a document's copies follow from its id, its source's `base` and the largest
choice key that still gets an extra copy; its place follows from its order key.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.mixing.apportion import (
    Copies,
    copies_of_documents,
    copies_of_epochs,
    copies_of_size,
    exact,
    largest_remainder,
)
from seqmill.pipeline.mixing.columns import Int64s
from seqmill.pipeline.mixing.config import UNITS, MixConfig
from seqmill.pipeline.mixing.keys import UInt64s, choice_keys, order_keys
from seqmill.pipeline.mixing.survey import Surveys
from seqmill.pipeline.records import ROW_BITS
from seqmill.storage import write_json

PLAN = "plan.json"
BIN_BITS = 16  # of an order key: output parts begin at multiples of 2^48
MOST_PARTS = 1024  # parts grow beyond PART_BYTES before there are more of them, memory permitting
PART_BYTES = 64 << 20  # of an output part of a small corpus, about: enough of them to work on in parallel
MOST_PART_BYTES = 1 << 30  # below the 2 GiB that the offsets of a string column can address
MEMORY_PER_PART = 3  # a part is mapped, joined in memory, and taken from: its size may be a third of the budget
MOST_COPIES = 1 << 20  # of a document: more is a mistake in the weights
MOST_FILES = 1 << (64 - ROW_BITS)  # that a doc_id can number
_PLAN_BYTES = 64  # that planning holds per document of the largest source: ids, keys, order, sizes, running sums
_CHECK_BYTES = 16  # per document, to find equal ids


def make_plan(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Decide the copies of every document and the parts of the output, and write them to plan.json."""
    config = MixConfig(**payload["config"])
    surveys = Surveys(payload["surveys"], payload["folders"])
    _check_memory(surveys, config.memory_mb)
    surveys.shifts = id_shifts([surveys.ids_of_folder(folder) for folder in range(payload["folders"])])
    unit = config.unit or ("tokens" if payload["kind"] == "tokens" else "bytes")
    if unit == "tokens" and payload["kind"] != "tokens":
        raise UserError("mix.unit = 'tokens': documents have none yet; mix by bytes, or tokenize first")
    sizes = {one: {source: _total(surveys, source, one) for source in surveys.sources} for one in UNITS}
    wanted = wanted_sizes(config, unit, sizes[unit])
    bins = np.zeros(1 << BIN_BITS, np.int64)
    sources = {}
    most_copies = 0
    for source in surveys.sources:
        doc_ids = surveys.doc_ids(source)
        keys = choice_keys(doc_ids, config.seed, "choice")
        order = np.argsort(keys)
        own = surveys.documents[source] if unit == "documents" else surveys.numbers(source, unit)[order]
        copies = _copies(config, source, own, wanted.get(source), surveys.documents[source])
        chosen = order[: copies.extra]
        most_copies = max(most_copies, copies.most)
        sources[source] = {
            "base": copies.base,
            "extra": copies.extra,
            "last_key": int(keys[chosen[-1]]) if copies.extra else None,
            **_counts(surveys, source, copies, chosen, {one: sizes[one][source] for one in UNITS}),
        }
        if config.shuffle:
            _add_to_bins(bins, doc_ids, surveys.numbers(source, "row_bytes"), copies, chosen, config.seed)
    plan = {
        "inputs": payload["inputs"],
        "shifts": [int(shift) for shift in surveys.shifts],
        "unit": unit,
        "wanted": wanted,
        "sources": sources,
        "part_starts": part_starts(bins, config.memory_mb, _largest_row(surveys)) if config.shuffle else [],
        "most_copies": most_copies,
        "repeated": most_copies > 1,  # the output has a column `copy`
    }
    write_json(out / PLAN, plan)
    return UnitResult({PLAN: 1})


def _check_memory(surveys: Surveys, memory_mb: int) -> None:
    documents = sum(surveys.documents.values())
    largest = max(surveys.documents.values(), default=0)
    needed = max(_CHECK_BYTES * documents, _PLAN_BYTES * largest)
    if needed > memory_mb << 20:
        raise UserError(
            f"mix.memory_mb = {memory_mb}: planning over {documents} documents ({largest} in the largest source) needs "
            f"{-(-needed >> 20)} MiB; raise it, or mix fewer documents at a time"
        )


def id_shifts(ids: Sequence[UInt64s]) -> UInt64s:
    """What to add to the ids of each folder, uint64[folders], so that no two documents of the mix share one.

    Zeros where the ids differ already (folders of one ingest); else each folder's file numbers follow those of the
    folder before it. Example: folders of 2 and 3 files that were ingested apart -> 0, 2 << 40.

    Raises:
        UserError: a folder has one id twice, or there are more files than an id can number.
    """
    for folder, own in enumerate(ids):
        own.sort()
        if (own[1:] == own[:-1]).any():
            twice = int(own[1:][own[1:] == own[:-1]][0])
            raise UserError(
                f"input {folder + 1} holds document {twice} more than once, so its copies cannot be told apart; mix "
                "the folders that it was made from, or mix first and repeat afterwards"
            )
    together = np.concatenate([np.empty(0, np.uint64), *ids])
    together.sort(kind="stable")  # a merge of sorted runs
    if not (together[1:] == together[:-1]).any():
        return np.zeros(len(ids), np.uint64)
    files = [int(own[-1] >> np.uint64(ROW_BITS)) + 1 if len(own) else 0 for own in ids]
    if sum(files) > MOST_FILES:
        raise UserError(f"the inputs have {sum(files)} files, a document's id can number {MOST_FILES}; mix fewer")
    before = np.cumsum([0, *files[:-1]]).astype(np.uint64)
    return before << np.uint64(ROW_BITS)


def wanted_sizes(config: MixConfig, unit: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Source -> size of its part of the output in `unit`, by weights; empty where epochs decide.

    Args:
        sizes: source -> what it has of `unit`.

    Raises:
        UserError: a name is unknown, a source has no weight, or a source would be seen more than max_epochs times.
    """
    named = config.weights or config.epochs
    unknown = sorted(set(named) - set(sizes))
    if unknown:
        raise UserError(f"there is no source {unknown[0]!r} in the input; its sources are {', '.join(sizes) or 'none'}")
    if not config.weights:
        return {}
    unweighted = [source for source in sizes if source not in config.weights]
    if unweighted:
        raise UserError(
            f"source {unweighted[0]!r} has no weight: name every source, with 0 for one that is to be left out "
            f"(sources: {', '.join(sizes)})"
        )
    weights = [exact(config.weights[source]) for source in sizes]
    empty = [source for source, weight in zip(sizes, weights, strict=True) if weight and not sizes[source]]
    if empty:
        raise UserError(f"source {empty[0]!r} has no {unit}, so it cannot have a part of them; give it weight 0")
    limit = exact(config.max_epochs) if config.max_epochs else None if config.target else Fraction(1)
    target = config.target or _largest_target(weights, list(sizes.values()), limit or Fraction(1))
    wanted = dict(zip(sizes, largest_remainder(target, weights), strict=True))
    for source, size in wanted.items():
        if limit is not None and size > limit * sizes[source]:
            if config.target:
                raise UserError(
                    f"mix.target = {target} {unit} needs {size} of {source!r}, which has {sizes[source]}: more than "
                    f"mix.max_epochs = {config.max_epochs} allows; lower the target or its weight, or raise max_epochs"
                )
            wanted[source] = int(limit * sizes[source])  # rounding up went one too far
    return wanted


def _largest_target(weights: Sequence[Fraction], sizes: Sequence[int], epochs: Fraction) -> int:
    """The largest output for which no source is seen more than `epochs` times."""
    whole = sum(weights)
    return int(min(epochs * size * whole / weight for weight, size in zip(weights, sizes, strict=True) if weight))


def _total(surveys: Surveys, source: str, unit: str) -> int:
    return surveys.documents[source] if unit == "documents" else int(surveys.numbers(source, unit).sum())


def _copies(config: MixConfig, source: str, own: int | Int64s, wanted: int | None, documents: int) -> Copies:
    """The copies of a source's documents.

    Args:
        own: its number of documents, or their sizes in the order in which they get an extra copy, int64[documents].
        wanted: the size of its part, in documents or in the unit of the sizes; None: by epochs.
    """
    if wanted is None:
        copies = copies_of_epochs(exact(config.epochs.get(source, 1.0)), documents)
    elif not wanted:
        copies = Copies(0, 0)
    elif isinstance(own, int):
        copies = copies_of_documents(wanted, own)
    else:
        copies = copies_of_size(wanted, own, at_most=config.target is None or config.max_epochs is not None)
    if copies.base >= MOST_COPIES:
        raise UserError(
            f"source {source!r} would be seen {copies.base} times, the limit is {MOST_COPIES}; lower its weight, its "
            "epochs or mix.target"
        )
    return copies


def _counts(
    surveys: Surveys, source: str, copies: Copies, chosen: Int64s, entered: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """What enters from a source, what leaves, and what leaves when copies are not counted; each in all three units.

    Args:
        chosen: positions of the documents with an extra copy, int64[extra].
    """
    extra = {"documents": copies.extra}
    extra.update({unit: int(surveys.numbers(source, unit)[chosen].sum()) for unit in UNITS[1:]})
    return {
        "entered": dict(entered),
        "left": {unit: copies.base * entered[unit] + extra[unit] for unit in UNITS},
        "distinct": dict(entered) if copies.base else extra,
    }


def _add_to_bins(bins: Int64s, doc_ids: UInt64s, sizes: Int64s, copies: Copies, chosen: Int64s, seed: int) -> None:
    """Add the memory of a source's copies, `sizes` int64[documents], to the bins of their order keys, in place."""
    for copy in range(copies.most):
        rows = slice(None) if copy < copies.base else chosen
        bin_of = (order_keys(doc_ids[rows], copy, seed) >> np.uint64(64 - BIN_BITS)).astype(np.int64)
        bins += np.bincount(bin_of, sizes[rows], len(bins)).astype(np.int64)


def part_starts(bins: Int64s, memory_mb: int, largest_row: int) -> list[int]:
    """The first bin of each output part; every part fits the memory budget.

    Args:
        bins: memory of the rows in each bin, int64[2**BIN_BITS].
        largest_row: memory of the largest document, in bytes.

    Raises:
        UserError: a document, or the documents of one bin, are too large for the budget.
    """
    most = largest_part(memory_mb)
    heaviest = max(int(bins.max()), largest_row)
    if heaviest > most:
        what = "the largest document takes" if largest_row > most else "the documents of the fullest hash range take"
        raise UserError(
            f"mix.memory_mb = {memory_mb}: {what} {heaviest} bytes, but a part may have {most} (a third of the budget, "
            f"at most {MOST_PART_BYTES >> 30} GiB); raise memory_mb, cut longer documents, or set mix.shuffle = false"
        )
    size = min(most, max(PART_BYTES, -(-int(bins.sum()) // MOST_PARTS)))
    starts, filled = [0], 0
    for place, added in enumerate(bins.tolist()):
        if filled and filled + added > size:
            starts.append(place)
            filled = 0
        filled += added
    return starts


def largest_part(memory_mb: int) -> int:
    """The bytes that a part of the output, or a piece on its way there, may take in memory."""
    return min((memory_mb << 20) // MEMORY_PER_PART, MOST_PART_BYTES)


def _largest_row(surveys: Surveys) -> int:
    return max((int(surveys.numbers(source, "row_bytes").max()) for source in surveys.sources), default=0)


class CopyCounter:
    """Tells the copies of each document of a batch, from the plan."""

    def __init__(self, plan: Mapping[str, Any], seed: int) -> None:
        """`plan`: as `make_plan` wrote it."""
        sources = plan["sources"].values()
        self._names = pa.array(list(plan["sources"]), pa.string())
        self._base = np.array([source["base"] for source in sources], np.int64)
        self._has_extra = np.array([source["extra"] > 0 for source in sources], bool)
        self._last_key = np.array([source["last_key"] or 0 for source in sources], np.uint64)
        self._seed = seed

    def __call__(self, batch: pa.RecordBatch) -> Int64s:
        """Copies per row, int64[rows]; `batch` has its final ids."""
        source = pc.index_in(batch.column("source").cast(pa.string()), self._names).to_numpy(zero_copy_only=False)
        keys = choice_keys(batch.column("doc_id").to_numpy(), self._seed, "choice")
        return self._base[source] + (self._has_extra[source] & (keys <= self._last_key[source]))
