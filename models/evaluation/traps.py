"""What a model makes of copyright traps while it is trained: the loss on the traps themselves, and on their copies.

`trap_groups` are the traps of a traps.parquet as documents of an evaluation, by how often they were injected: a model
that learns them by heart gets better on the members than on those that were never injected. `TrapTokens` finds the
copies in packed rows, so that the loss of training can be told apart in three.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.models.evaluation.held_out import EvaluationConfig, HeldOut
from seqmill.models.loss import PARTS
from seqmill.storage import read_arrow

if TYPE_CHECKING:
    from seqmill.tokenizers_ext import Encoder

Int64s = npt.NDArray[np.int64]

NEVER = "never"  # the group of traps that no document holds


def trap_groups(traps: Path | str, tokenizer: Path | str, config: EvaluationConfig) -> HeldOut:
    """All traps of a file, each a document as it stands in the corpus: behind a space, without what is around it.

    Args:
        traps: the traps.parquet that `seqmill traps inject` wrote.
        tokenizer: the model's tokenizer folder.

    Returns:
        Documents of the sources "never", "1", "10", ...: copies of each trap in the corpus.

    Raises:
        UserError: the file holds no traps.
    """
    from seqmill.packing import TokenStore
    from seqmill.tokenizers_ext import load

    table = _read_parquet(Path(traps), ("trap_id", "text", "copies"))
    encoder = load(Path(tokenizer))
    texts = pa.array([f" {text}" for text in table["text"].to_pylist()], pa.large_string())
    copies = table["copies"].to_pylist()
    groups = [NEVER if count == 0 else str(count) for count in copies]
    tokens = pa.table(
        {
            "doc_id": table["trap_id"].cast(pa.uint64()),
            "input_ids": encoder.encode(texts),
            "source": pa.array(groups, pa.string()),
        }
    )
    store = TokenStore([tokens], {"vocab_size": encoder.vocab_size, "sources": sorted(set(groups))})
    return HeldOut(store, pc.binary_length(texts).to_numpy(zero_copy_only=False), config)


@dataclass(frozen=True, eq=False)
class TrapTokens:
    """Places in packed rows whose target is a token of an injected copy; sorted by row."""

    row_id: Int64s
    start: Int64s  # place within the row
    stop: Int64s
    row_tokens: npt.NDArray[np.int32]  # of every row of the folder

    @classmethod
    def find(cls, packed: Path | str, injections: Path | str) -> "TrapTokens":
        """Trace the bytes of every copy to the tokens that cover them, and these to rows.

        Memory holds 4 bytes a row of the folder, and the tokens of the documents with traps.

        Args:
            packed: rows that were made of the documents with traps; the folder carries its tokenizer.
            injections: the injections.parquet that `seqmill traps inject` wrote.

        Raises:
            UserError: a file is something else, or the bytes of a document are not those of its tokens.
        """
        from seqmill.tokenizers_ext import load

        packed = Path(packed)
        places = _read_parquet(Path(injections), ("doc_id", "start", "stop"))
        of_copy, starts, stops = (places[name].to_numpy() for name in ("doc_id", "start", "stop"))
        hosts, host_of_copy = np.unique(of_copy.astype(np.uint64), return_inverse=True)
        row_tokens: list[np.ndarray] = [np.empty(0, np.int32)]
        segments: list[list[_Segment]] = [[] for _ in hosts]
        for batch in _row_batches(packed):
            row_tokens.append(batch.column("n_tokens").to_numpy())
            for host, segment in _segments_of(batch, hosts):
                segments[host].append(segment)
        encoder = load(packed / "tokenizer")
        found = []
        for host, pieces in enumerate(segments):
            own = host_of_copy == host
            if pieces:
                for first, last in _tokens_of(encoder, pieces, starts[own], stops[own], int(hosts[host])):
                    found += [piece.places(first - 1, last - 1) for piece in pieces]
        spans = np.array(sorted(span for span in found if span[1] < span[2]), np.int64).reshape(-1, 3)
        return cls(spans[:, 0], spans[:, 1], spans[:, 2], np.concatenate(row_tokens))

    def mask(self, batch: Mapping[str, Any]) -> Tensor:
        """bool[T] on the host: the tokens of a batch of `PackedDataset` whose target belongs to a copy."""
        rows = batch["row_ids"].numpy()
        sizes = self.row_tokens[rows].astype(np.int64)
        begins = np.cumsum(sizes) - sizes
        low, high = (np.searchsorted(self.row_id, rows, side) for side in ("left", "right"))
        mask = torch.zeros(len(batch["input_ids"]), dtype=torch.bool)
        for row in np.flatnonzero(high > low).tolist():
            for span in range(low[row], high[row]):
                mask[begins[row] + self.start[span] : begins[row] + self.stop[span]] = True
        return mask


def token_parts(batch: Mapping[str, Any], traps: TrapTokens | None) -> Tensor | None:
    """int64[T] on the host: the part of each token's loss, a number into `PARTS`; None where nothing tells any apart.

    A copy of a trap is told first: a repeated document with one has tokens of both kinds.
    """
    if traps is None and "is_repeat" not in batch:
        return None
    parts = torch.zeros(len(batch["input_ids"]), dtype=torch.int64)
    if "is_repeat" in batch:
        parts += batch["is_repeat"].repeat_interleave(batch["cu_seqlens"].diff())
    if traps is not None:
        parts[traps.mask(batch)] = PARTS.index("trap")
    return parts


@dataclass(frozen=True, eq=False)
class _Segment:
    """A segment of a document with traps."""

    row_id: int
    place: int  # of its first token within the row
    offset: int  # of its first token within the document
    ids: np.ndarray

    def places(self, first: int, last: int) -> tuple[int, int, int]:
        """(row, start, stop) of the document's tokens first to last that lie in this segment, or an empty stretch."""
        shift = self.place - self.offset
        return self.row_id, max(first, self.offset) + shift, min(last, self.offset + len(self.ids)) + shift


def _row_batches(packed: Path) -> Iterator[pa.RecordBatch]:
    for file in open_manifest(packed, "packed")["files"]:
        yield from read_arrow(packed / file["name"]).to_batches()


def _segments_of(batch: pa.RecordBatch, hosts: np.ndarray) -> Iterator[tuple[int, _Segment]]:
    """(position in `hosts`, segment) for every segment of these documents."""
    ids, documents, offsets, lengths = (
        batch.column(name).flatten().to_numpy() for name in ("input_ids", "doc_id", "doc_offset", "seq_lengths")
    )
    ends = np.cumsum(lengths, dtype=np.int64)  # rows lie end to end, without padding
    row_ends = np.cumsum(batch.column("n_tokens").to_numpy(), dtype=np.int64)
    row_ids = batch.column("row_id").to_numpy()
    for segment in np.flatnonzero(np.isin(documents, hosts)).tolist():
        begin = int(ends[segment] - lengths[segment])
        row = int(np.searchsorted(row_ends, begin, "right"))
        place = begin - int(row_ends[row - 1] if row else 0)
        host = int(np.searchsorted(hosts, documents[segment]))
        yield host, _Segment(int(row_ids[row]), place, int(offsets[segment]), ids[begin : ends[segment]])


def _tokens_of(
    encoder: "Encoder", pieces: list[_Segment], starts: np.ndarray, stops: np.ndarray, doc_id: int
) -> Iterator[tuple[int, int]]:
    """(first, one past the last) of the document's tokens that cover bytes starts[k] to stops[k], for every k whose
    bytes were packed: a document that was cut off has lost what stood behind."""
    from seqmill.tokenizers_ext.encoder import list_array

    size = max(piece.offset + len(piece.ids) for piece in pieces)
    document, known = np.zeros(size, pieces[0].ids.dtype), np.zeros(size, bool)
    for piece in pieces:
        place = slice(piece.offset, piece.offset + len(piece.ids))
        document[place], known[place] = piece.ids, True
    document = document[: size if known.all() else int(np.argmin(known))]
    lengths = _byte_lengths(encoder, document)
    whole = encoder.decode(list_array(np.array([0, len(document)]), document, encoder.vocab_size))[0].as_py()
    if lengths.sum() != len(whole):
        raise UserError(
            f"document {doc_id}: its tokens decode to {len(whole)} bytes together and {lengths.sum()} apart, so no "
            "byte of a trap can be traced to its token; train with a byte-level tokenizer, or leave the traps out"
        )
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if start < ends[-1]:
            yield int(np.searchsorted(ends, start, "right")) - 1, int(np.searchsorted(ends[:-1], stop, "left"))


def _byte_lengths(encoder: "Encoder", ids: np.ndarray) -> np.ndarray:
    """int64[len(ids)]: the bytes that each token of one document stands for."""
    from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder
    from seqmill.tokenizers_ext.token_bytes import bytes_of_ids

    if isinstance(encoder, EqualInfoEncoder):  # what an id stands for may depend on the document's table
        return encoder.lengths_of(ids, np.array([0, len(ids)]))
    return np.diff(bytes_of_ids(encoder)[0])[ids]


def _read_parquet(path: Path, columns: tuple[str, ...]) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {path} as what `seqmill traps inject` writes ({error}); name its file") from error
