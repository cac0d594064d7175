"""Documents to learn from: a bounded sample of a stream, laid end to end."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError

PIECE = 1 << 20  # bytes: longer documents are sampled by pieces, so that none fills the sample alone
SAMPLE_BYTES = 100 << 20
MOST_BYTES = (1 << 31) - 1  # positions are counted in 32 bits


@dataclass(frozen=True, eq=False)
class Texts:
    """Documents as bytes, in the layout of an Arrow binary column."""

    data: np.ndarray  # uint8[bytes of all documents]
    offsets: np.ndarray  # int64[documents + 1]: where in `data` each begins and ends

    @classmethod
    def of(cls, documents: Iterable[bytes]) -> "Texts":
        """All of these documents."""
        kept = list(documents)
        ends = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(kept), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the documents and their lengths."""
        digest = hashlib.sha256(np.diff(self.offsets).astype("<u8").tobytes())
        digest.update(self.data.data)
        return digest.hexdigest()


def sample_texts(documents: Iterable[bytes | pa.Array | pa.ChunkedArray], budget: int = SAMPLE_BYTES) -> Texts:
    """The documents of a stream whose hashes are least, as many as fit; in the order of the stream.

    A document is kept for its bytes alone, not for its place, so the sample is the same for any cutting into arrays.
    Copies of a document are kept or left together. Memory: twice the budget, and one array of the stream.

    Args:
        documents: bytes, or Arrow columns of (large_)string or (large_)binary without nulls.
        budget: bytes of the sample at most, from 1 to 2**31 - 1.

    Raises:
        UserError: the budget is out of range, or a column has nulls or is neither text nor binary.
    """
    if not 1 <= budget <= MOST_BYTES:
        raise UserError(f"a sample of {budget} bytes: 1 to {MOST_BYTES} are possible; {SAMPLE_BYTES} is usual")
    kept: list[tuple[int, int, bytes]] = []  # the greatest hash first, of equal ones the last place
    size = 0
    for place, piece in enumerate(_pieces(documents, min(PIECE, budget))):
        rank = -int.from_bytes(hashlib.blake2b(piece, digest_size=8).digest())
        if size + len(piece) > budget and kept and (rank, -place) < kept[0][:2]:
            continue  # all that are kept come before it
        heapq.heappush(kept, (rank, -place, piece))
        size += len(piece)
        while size > budget:
            size -= len(heapq.heappop(kept)[2])
    return Texts.of(piece for _, _, piece in sorted(kept, key=lambda row: -row[1]))


def _pieces(documents: Iterable[bytes | pa.Array | pa.ChunkedArray], longest: int) -> Iterator[bytes]:
    for batch in documents:
        for document in [batch] if isinstance(batch, bytes) else _values(batch):
            for start in range(0, max(len(document), 1), longest):
                yield document[start : start + longest]


def _values(column: pa.Array | pa.ChunkedArray) -> Iterator[bytes]:
    if column.type not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        raise UserError(f"cannot sample a column of type {column.type}: string or binary is needed; cast it first")
    if column.null_count:
        raise UserError(f"cannot sample {column.null_count} null documents: drop them or fill them with '' first")
    for value in column.cast(pa.large_binary()):
        yield value.as_py()
