"""From document lengths to packed rows: which tokens of which document go where, and what is left out.

    lengths -> what the overflow policy keeps (fragments) -> one of ALGORITHMS -> PackPlan

Every algorithm is a few loops of machine code over the documents; whatever depends on it is in its own module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from seqmill.errors import UserError
from seqmill.packing import in_order, whole_corpus, windows
from seqmill.packing.buckets import Buckets
from seqmill.packing.fragments import OVERFLOWS, Documents, Rows
from seqmill.storage import read_arrow, read_metadata, with_metadata, write_arrow

ALGORITHM: Final = "best-fit-decreasing"
ALGORITHMS: Mapping[str, Callable[[Documents], Rows]] = MappingProxyType(
    {
        ALGORITHM: whole_corpus.pack,
        "windowed": windows.pack,
        "concat": in_order.concatenate,
        "first-fit": in_order.first_fit,
    }
)
WINDOW: Final = 1 << 16  # documents
MAX_CAPACITY: Final = 1 << 24  # tokens; bounds the tables that are indexed by length (128 MiB each)

Int64s = npt.NDArray[np.int64]
_FRAGMENT = pa.struct([("item", pa.int64()), ("start", pa.int64()), ("stop", pa.int64())])
_SCHEMA = pa.schema([pa.field("fragments", pa.large_list(_FRAGMENT), nullable=False)])
_COUNTERS = (
    "documents",
    "tokens",
    "dropped_tokens",
    "dropped_documents",
    "truncated_documents",
    "split_documents",
    "empty_documents",
)


@dataclass(frozen=True, eq=False)
class PackPlan:
    """The contents of every packed row: row r holds fragments row_offsets[r] to row_offsets[r + 1].

    Fragment f is tokens start[f] to stop[f] of document item[f]. In a row, longer fragments come first where the whole
    corpus was packed at once, and fragments are in the order of the documents otherwise.
    """

    row_offsets: Int64s  # int64[rows + 1], in fragments, from 0
    item: Int64s  # int64[fragments], position of the document in `lengths`
    start: Int64s  # int64[fragments], first token within the document
    stop: Int64s  # int64[fragments], one past the last token; start < stop
    capacity: int  # tokens that a row can hold
    overflow: str  # what was done with documents longer than that: one of OVERFLOWS
    seed: int  # of the order of the rows and of which equally long fragment fills which place, where these are drawn
    documents: int  # length of `lengths`, empty ones included
    tokens: int  # tokens in the rows, all fragments together
    dropped_tokens: int  # tokens that are in no row (overflow "truncate" or "drop")
    dropped_documents: int  # documents that are in no row though they are not empty
    truncated_documents: int  # documents that lost their end
    split_documents: int  # documents that are in more than one fragment
    empty_documents: int  # documents without tokens: in no row
    buckets: Buckets | None = None  # rows of several lengths (seqmill.packing.decomposition); None: of one
    algorithm: str = ALGORITHM  # one of ALGORITHMS, or with buckets "dataset-decomposition"
    window: int | None = None  # documents that "windowed" packs together; None: another algorithm

    @property
    def rows(self) -> int:
        """Number of packed rows."""
        return len(self.row_offsets) - 1

    @property
    def efficiency(self) -> float:
        """The share of the rows' places that hold a token, 0 to 1; 1 for no rows at all."""
        places = self.buckets.places if self.buckets else self.rows * self.capacity
        return self.tokens / places if self.rows else 1.0

    @property
    def lower_bound(self) -> int:
        """The rows that the tokens would need if they could be cut anywhere: no packing has fewer.

        With buckets: if the leftovers could be; the other rows are full.
        """
        if self.buckets:
            return self.rows - self.buckets.leftover_rows - (-self.buckets.leftover_tokens // self.buckets.shortest)
        return -(-self.tokens // self.capacity)

    @property
    def target_only_tokens(self) -> int:
        """Tokens that are in rows as targets alone. With buckets: the last of each document's tokens that are kept."""
        return self.documents - self.empty_documents - self.dropped_documents if self.buckets else 0

    def room(self, row: int) -> int:
        """Tokens that a row has room for."""
        return int(self.buckets.room_of(np.array([row]))[0]) if self.buckets else self.capacity


def plan(
    lengths: npt.ArrayLike,
    capacity: int,
    overflow: str = "split",
    seed: int = 0,
    algorithm: str = ALGORITHM,
    window: int | None = None,
    threads: int | None = None,
) -> PackPlan:
    """Pack documents into rows of at most `capacity` tokens.

    Args:
        lengths: tokens per document, integers[documents] >= 0. Documents of length 0 are counted and left out.
        capacity: tokens per row, 1 to MAX_CAPACITY.
        overflow: what happens to a document that is longer: "split" cuts it into pieces of `capacity` and a tail and
            keeps all of them, "truncate" keeps its first `capacity` tokens, "drop" leaves it out, "error" refuses it.
        seed: of "best-fit-decreasing": rows come in an order drawn from it, so that neighbours differ; it never changes
            their number. The other algorithms keep the order of the corpus and draw nothing.
        algorithm: "best-fit-decreasing" of the whole corpus at once, exact (arXiv 2404.10830): the fewest rows, in any
            order. "windowed": the same on windows of documents; rows with much room left stay open for one more
            window, so documents that are 2 * window or more apart never change places. "concat": documents
            one after another, cut where a row is full, and so with overflow "split" alone. "first-fit": each document
            in order into the first row with room, a baseline.
        window: documents per window of "windowed"; default: WINDOW.
        threads: at most so many work at a time; default: NUMBA_NUM_THREADS, and that is one per core.

    Returns:
        The plan: the same one for the same arguments, on any machine and for any number of threads.

    Raises:
        UserError: an argument is out of its range, or a document is too long and `overflow` is "error".
    """
    checked = checked_lengths(lengths)
    if not 1 <= capacity <= MAX_CAPACITY:
        raise UserError(f"a row capacity of {capacity} tokens is outside 1 to {MAX_CAPACITY}; choose one inside")
    check_algorithm(algorithm, window, overflow)
    empty, too_long, excess, tokens = _survey(checked, capacity)
    if overflow == "error" and too_long:
        culprit = int(np.argmax(checked > capacity))
        raise _refusal(culprit, int(checked[culprit]), capacity)
    window = (window or WINDOW) if algorithm == "windowed" else None
    threads = threads or numba.config.NUMBA_NUM_THREADS
    documents = Documents(checked, capacity, OVERFLOWS.index(overflow), seed, window or 0, threads)
    rows = ALGORITHMS[algorithm](documents)
    dropped_tokens = {"truncate": excess, "drop": excess + too_long * capacity}.get(overflow, 0)
    # where rows cut documents, their pieces lie side by side
    split = _count_split(rows.start) if algorithm == "concat" else too_long
    return PackPlan(
        *rows,
        capacity=capacity,
        overflow=overflow,
        seed=seed,
        documents=len(checked),
        tokens=tokens - dropped_tokens,
        dropped_tokens=dropped_tokens,
        dropped_documents=too_long if overflow == "drop" else 0,
        truncated_documents=too_long if overflow == "truncate" else 0,
        split_documents=split if overflow == "split" else 0,
        empty_documents=empty,
        algorithm=algorithm,
        window=window,
    )


def check_algorithm(algorithm: str, window: int | None, overflow: str) -> None:
    """Refuse what no plan can be made with.

    Raises:
        UserError: an unknown algorithm or policy, a window where there is none, or a policy that does not go with the
            algorithm.
    """
    if overflow not in OVERFLOWS:
        raise UserError(f"unknown overflow policy {overflow!r}; choose one of {', '.join(OVERFLOWS)}")
    if algorithm not in ALGORITHMS:
        raise UserError(f"unknown packing algorithm {algorithm!r}; choose one of {', '.join(ALGORITHMS)}")
    if window is not None and algorithm != "windowed":
        raise UserError(f"a window of {window} documents is given, but {algorithm!r} has none; choose 'windowed'")
    if window is not None and window < 1:
        raise UserError(f"a window of {window} documents holds nothing; give 1 or more")
    if algorithm == "concat" and overflow != "split":
        raise UserError(
            f"overflow {overflow!r} with 'concat': it cuts documents at the ends of rows, of whatever length they are; "
            "leave overflow at 'split', or choose another algorithm"
        )


def save_plan(path: Path, packed: PackPlan) -> None:
    """Write a plan as an Arrow stream of one batch: a row per packed row, its fragments in one list column."""
    fragments = pa.StructArray.from_arrays(
        [pa.array(packed.item), pa.array(packed.start), pa.array(packed.stop)], fields=list(_FRAGMENT)
    )
    column = pa.LargeListArray.from_arrays(pa.array(packed.row_offsets), fragments)
    described = {name: getattr(packed, name) for name in ("capacity", "overflow", "seed", *_COUNTERS)}
    if packed.buckets:
        described["buckets"] = packed.buckets.as_json()
    if packed.window:
        described["window"] = packed.window
    schema = with_metadata(_SCHEMA, "plan", algorithm=packed.algorithm, **described)
    write_arrow(path, schema, [pa.record_batch([column], schema=schema)])


def load_plan(path: Path) -> PackPlan:
    """Map a plan that `save_plan` wrote; its arrays are read-only views of the file.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    table = read_arrow(path)
    metadata = read_metadata(table.schema)
    if metadata.get("kind") != "plan" or table.column(0).num_chunks != 1:
        raise UserError(f"{path} holds {metadata.get('kind', 'something else')}, but a pack plan is needed; plan again")
    column = table.column(0).chunk(0)
    fragments = column.values
    item, start, stop = (fragments.field(name).to_numpy(zero_copy_only=True) for name in ("item", "start", "stop"))
    return PackPlan(
        row_offsets=column.offsets.to_numpy(zero_copy_only=True),
        item=item,
        start=start,
        stop=stop,
        buckets=Buckets.of(metadata["buckets"]) if "buckets" in metadata else None,
        window=metadata.get("window"),
        **{name: metadata[name] for name in ("algorithm", "capacity", "overflow", "seed", *_COUNTERS)},
    )


def checked_lengths(lengths: npt.ArrayLike) -> Int64s:
    """`lengths` as int64[documents].

    Raises:
        UserError: they are not one dimension of integers of 0 or more.
    """
    given = np.asarray(lengths)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise UserError(
            f"document lengths must be one dimension of integers, not {given.ndim} dimensions of {given.dtype}; "
            "pass one integer per document"
        )
    checked = np.ascontiguousarray(given, dtype=np.int64)
    if checked.size and checked.min() < 0:  # uint64 beyond 2^63 ends here too
        index = int(np.argmax(checked < 0))
        raise UserError(f"document {index} has length {given[index]}; lengths are counts of tokens, 0 or more")
    return checked


def _refusal(index: int, length: int, capacity: int) -> UserError:
    return UserError(
        f"document {index} has {length} tokens, more than the row capacity {capacity}, and overflow is 'error'; "
        "raise the capacity, or choose overflow split, truncate or drop"
    )


@njit(cache=True, nogil=True)
def _survey(lengths: Int64s, capacity: int) -> tuple[int, int, int, int]:
    """Empty documents, documents longer than a row, the tokens that these have too many, and all tokens."""
    empty = too_long = excess = tokens = 0
    for length in lengths:
        empty += length == 0
        too_long += length > capacity
        excess += max(length - capacity, 0)
        tokens += length
    return empty, too_long, excess, tokens


@njit(cache=True, nogil=True)
def _count_split(start: Int64s) -> int:
    """Documents in more than one fragment, if these follow each other."""
    split = 0
    for fragment in range(1, start.size):
        split += start[fragment - 1] == 0 and start[fragment] > 0
    return split
