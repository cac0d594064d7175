"""Concatenating variable-length pieces by id: the decoder of every tokenizer whose tokens are byte strings."""

import numba
import numpy as np
import pyarrow as pa


def concatenate_pieces(
    ids: np.ndarray, id_offsets: np.ndarray, piece_offsets: np.ndarray, pieces: np.ndarray
) -> pa.LargeBinaryArray:
    """Documents as bytes: piece after piece.

    Args:
        ids: unsigned integers[tokens], all below len(piece_offsets) - 1.
        id_offsets: int64[documents + 1] into `ids`.
        piece_offsets: int64[vocabulary + 1] into `pieces`.
        pieces: uint8[...], the bytes of all pieces.
    """
    lengths = (piece_offsets[1:] - piece_offsets[:-1])[ids]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    data = np.empty(ends[-1], np.uint8)
    _copy_pieces(ids, ends, piece_offsets, pieces, data)
    offsets = ends[id_offsets]
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(id_offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


@numba.njit(nogil=True, cache=True)
def _copy_pieces(
    ids: np.ndarray, ends: np.ndarray, piece_offsets: np.ndarray, pieces: np.ndarray, data: np.ndarray
) -> None:
    for token in range(len(ids)):
        source = piece_offsets[ids[token]]
        for k in range(ends[token + 1] - ends[token]):
            data[ends[token] + k] = pieces[source + k]
