"""Concatenating variable-length pieces by id: the decoder of every tokenizer whose tokens are byte strings."""

import numba
import numpy as np
import pyarrow as pa

from seqmill.tokenizers_ext.encoder import offsets_and_bytes


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
    return binary_array(ends[id_offsets], data)


def without_first_space(documents: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Documents without the space that each may begin with: [b" a", b"b", b"  "] -> [b"a", b"b", b" "]."""
    offsets, data = offsets_and_bytes(documents)
    has_space = np.diff(offsets) > 0
    has_space[has_space] = data[offsets[:-1][has_space]] == ord(" ")
    kept = np.ones(len(data), bool)
    kept[offsets[:-1][has_space]] = False
    shorter = offsets - np.concatenate([np.zeros(1, np.int64), np.cumsum(has_space)])
    return binary_array(shorter, data[kept])


def binary_array(offsets: np.ndarray, data: np.ndarray) -> pa.LargeBinaryArray:
    """Documents from offsets int64[documents + 1] into bytes uint8[...], without a copy."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


@numba.njit(nogil=True, cache=True)
def _copy_pieces(
    ids: np.ndarray, ends: np.ndarray, piece_offsets: np.ndarray, pieces: np.ndarray, data: np.ndarray
) -> None:
    for token in range(len(ids)):
        source = piece_offsets[ids[token]]
        for k in range(ends[token + 1] - ends[token]):
            data[ends[token] + k] = pieces[source + k]
