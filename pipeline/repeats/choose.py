"""Which documents (or windows) are repeated, which occur once, and where the parts of the output begin.

Documents are taken in the order of a keyed hash of their ids: first the subset, then the unique part from what is
left. A document that would exceed what is wanted is passed over for later ones that do not; at the end one more is
taken if that comes closer. So no document that was left out could, by being added, bring a part closer to its size:

    |realised - wanted| <= half the shortest document left out

The unique part is aimed at `tokens - repeats * realised subset` (at nothing where the fraction is 1), so that a subset
that cannot be met exactly changes the fraction a little, but not the size of the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from seqmill.errors import UserError
from seqmill.packing import TokenStore
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.mixing.keys import choice_keys, order_keys
from seqmill.pipeline.mixing.plan import BIN_BITS, largest_part, part_starts
from seqmill.pipeline.repeats.config import SampleConfig
from seqmill.pipeline.repeats.windows import Int64s, UInt64s, places, window_bytes, window_ids
from seqmill.storage import read_arrow, write_arrow, write_json

PLAN = "plan.json"
CHOICE = "choice.arrow"
LEFT_OUT, UNIQUE, REPEATED = range(3)  # values of the choice
_SCHEMA = pa.schema({"choice": pa.uint8()})
_PLAN_BYTES = 80  # that choosing holds per document: ids, lengths, bytes, keys, order, places and what is made of them
_ROW_BYTES = 64  # of a row beside its tokens


@dataclass(frozen=True, eq=False)
class Items:
    """All that can be chosen, in the order of the tokens folder: its documents or their windows."""

    ids: UInt64s  # uint64[items], what is hashed
    tokens: Int64s  # int64[items]
    num_bytes: Int64s  # int64[items]
    source: npt.NDArray[np.int16]  # int16[items], position in the store's sources
    first: list[int]  # the first item of each file of the folder, and the number of items


def make_plan(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write choice.arrow, one value per item, and plan.json: counts, and where the parts of the output begin."""
    config = SampleConfig(**payload["config"])
    tables = [read_arrow(Path(file["path"])) for file in payload["parts"]]
    store = TokenStore(tables, {"vocab_size": payload["vocab_size"], "sources": payload["sources"]})
    _check_memory(store, config)
    items = _items(store, tables, config)
    order = np.argsort(choice_keys(items.ids, config.seed, "repeats"), kind="stable")
    wanted, choice = choose(items.tokens, order, config)
    disk_bytes = sum(Path(file["path"]).stat().st_size for file in payload["parts"])
    row_bytes = _ROW_BYTES + -(-items.tokens * disk_bytes // max(1, int(store.lengths.sum())))
    plan = {
        "repeated": True,  # so that `gather_part` keeps the column `copy`
        "first_item": items.first,
        "part_starts": _part_starts(items.ids, row_bytes, choice, config),
        "wanted": wanted,
        "by_source": {
            name: {kind: _counts(items, (items.source == number) & (choice == value)) for kind, value in _KINDS.items()}
            for number, name in enumerate(store.sources)
        },
    }
    write_json(out / PLAN, plan)
    batch = pa.record_batch([pa.array(choice)], schema=_SCHEMA)
    return UnitResult({PLAN: 1, CHOICE: write_arrow(out / CHOICE, _SCHEMA, [batch])})


_KINDS = {"subset": REPEATED, "unique": UNIQUE, "left_out": LEFT_OUT}


def _counts(items: Items, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
    return {
        "documents": int(np.count_nonzero(chosen)),
        "bytes": int(items.num_bytes[chosen].sum()),
        "tokens": int(items.tokens[chosen].sum()),
    }


def choose(tokens: Int64s, order: Int64s, config: SampleConfig) -> tuple[dict[str, int], npt.NDArray[np.uint8]]:
    """What is wanted, and what becomes of every item.

    Args:
        tokens: of every item, int64[items].
        order: the items in the order in which they are considered, int64[items].

    Returns:
        {"subset_tokens", "repeated_tokens", "unique_tokens"}, and the choice, uint8[items].

    Raises:
        UserError: there are too few tokens, or none of the items is small enough to be the subset.
    """
    fraction = Fraction(str(config.repeat_fraction))
    subset = round(fraction * config.tokens / config.repeats)
    wanted = {
        "subset_tokens": subset,
        "repeated_tokens": round(fraction * config.tokens),
        "unique_tokens": config.tokens - round(fraction * config.tokens),
    }
    choice = np.full(len(tokens), LEFT_OUT, np.uint8)
    what = "documents" if config.mode == "document" else "windows"
    asked = (
        f"repeats.tokens = {config.tokens} at repeats.repeat_fraction = {config.repeat_fraction} and repeats.repeats = "
        f"{config.repeats}"
    )
    available = int(tokens.sum())
    taken = fill(tokens, order, choice, REPEATED, subset)
    if available and fraction and not taken:
        raise UserError(
            f"{asked} repeats a subset of {subset} tokens, but the shortest of the {what} has "
            f"{tokens[tokens > 0].min()}; raise repeats.tokens or repeats.repeat_fraction, or lower repeats.repeats"
        )
    once = 0 if fraction == 1 else max(0, config.tokens - config.repeats * taken)
    if available < max(subset if fraction == 1 else 0, taken + once):
        most = int(available / (fraction / config.repeats + 1 - fraction))
        raise UserError(
            f"{asked} needs {max(subset, taken) + once} tokens of distinct {what}, the input has {available}; ask for "
            f"at most about {most} tokens, or give more input"
        )
    fill(tokens, order, choice, UNIQUE, once)
    return wanted, choice


@njit(cache=True, nogil=True)
def fill(tokens: Int64s, order: Int64s, choice: npt.NDArray[np.uint8], mark: int, wanted: int) -> int:
    """Mark items that are left out so far until they have about `wanted` tokens; returns how many they have.

    The module says how close they come.
    """
    room, shortest = wanted, -1
    for item in order:
        if choice[item] != LEFT_OUT or tokens[item] == 0:
            continue
        if tokens[item] <= room:
            choice[item] = mark
            room -= tokens[item]
        elif shortest < 0 or tokens[item] < tokens[shortest]:
            shortest = item
    if shortest >= 0 and tokens[shortest] - room < room:
        choice[shortest] = mark
        room -= tokens[shortest]
    return wanted - room


def _items(store: TokenStore, tables: list[pa.Table], config: SampleConfig) -> Items:
    doc_ids, lengths = store.doc_ids, store.lengths
    ordered = np.sort(doc_ids)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise UserError(
            f"the tokens hold document {ordered[1:][twice][0]} more than once, so they are repeated data already; "
            "sample from the tokens that they were made of"
        )
    num_bytes = np.concatenate([np.empty(0, np.int64), *(table["num_bytes"].to_numpy() for table in tables)])
    num_bytes = num_bytes.astype(np.int64)
    source = store.source_of(np.arange(store.documents))
    first_document = np.cumsum([0, *(len(table) for table in tables)])
    if config.seq_len is None:
        return Items(doc_ids, lengths, num_bytes, source, first_document.tolist())
    document, index = places(lengths, config.seq_len)
    return Items(
        ids=window_ids(doc_ids[document], index),
        tokens=np.full(len(document), config.seq_len),
        num_bytes=window_bytes(num_bytes, lengths, document, index, config.seq_len),
        source=source[document],
        first=np.searchsorted(document, first_document).tolist(),
    )


def _check_memory(store: TokenStore, config: SampleConfig) -> None:
    items = store.documents
    if config.seq_len is not None:
        items = max(items, int((store.lengths // config.seq_len).sum()))
    needed = items * _PLAN_BYTES
    if needed > config.memory_mb << 20:
        raise UserError(
            f"repeats.memory_mb = {config.memory_mb}: choosing from {items} {config.mode}s needs {-(-needed >> 20)} "
            "MiB; raise it, or sample from a part of the tokens"
        )


def _part_starts(ids: UInt64s, row_bytes: Int64s, choice: npt.NDArray[np.uint8], config: SampleConfig) -> list[int]:
    """The hash ranges of the output's parts, none of which takes more than the budget allows."""
    bins = np.zeros(1 << BIN_BITS, np.int64)
    for copy in range(config.repeats):
        rows = np.flatnonzero(choice == REPEATED if copy else choice != LEFT_OUT)
        if not len(rows):
            break
        bin_of = (order_keys(ids[rows], copy, config.seed) >> np.uint64(64 - BIN_BITS)).astype(np.int64)
        bins += np.bincount(bin_of, row_bytes[rows], len(bins)).astype(np.int64)
    largest = int(row_bytes[choice != LEFT_OUT].max(initial=0))
    heaviest, most = max(largest, int(bins.max())), largest_part(config.memory_mb)
    if heaviest > most:
        raise UserError(
            f"repeats.memory_mb = {config.memory_mb}: the largest {config.mode} or hash range takes {heaviest} bytes, "
            f"but a part of the output may have {most} (a third of the budget, at most 1 GiB); raise it"
        )
    return part_starts(bins, config.memory_mb, largest)
