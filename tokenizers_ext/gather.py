"""Concatenating variable-length pieces by id: the decoder of every tokenizer whose tokens are byte strings."""

import numba
import numpy as np
import pyarrow as pa

from seqmill.tokenizers_ext.encoder import offsets_and_bytes

WORD = 8  # bytes copied at a time


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
    ends = _document_ends(ids, id_offsets, piece_offsets)
    # a word is written at a time, and the next piece over what is too much
    data = np.frombuffer(pa.allocate_buffer(int(ends[-1]) + WORD), np.uint8)
    _copy_pieces(ids, id_offsets, piece_offsets, pieces, data)
    return binary_array(ends, data[: ends[-1]])


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
def _document_ends(ids: np.ndarray, id_offsets: np.ndarray, piece_offsets: np.ndarray) -> np.ndarray:
    """Bytes of all documents up to each one's end: int64[documents + 1]."""
    ends = np.zeros(len(id_offsets), np.int64)
    total = np.int64(0)
    for document in range(len(id_offsets) - 1):
        for token in range(np.uint64(id_offsets[document]), np.uint64(id_offsets[document + 1])):
            piece = np.uint64(ids[token])
            total += np.int64(piece_offsets[piece + np.uint64(1)]) - np.int64(piece_offsets[piece])
        ends[document + 1] = total
    return ends


@numba.njit(nogil=True, cache=True)
def _copy_pieces(
    ids: np.ndarray, id_offsets: np.ndarray, piece_offsets: np.ndarray, pieces: np.ndarray, data: np.ndarray
) -> None:
    """Eight bytes a step: read all, then written all, which the compiler makes one word each."""
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    five, six, seven, word = np.uint64(5), np.uint64(6), np.uint64(7), np.uint64(WORD)
    out, available = np.uint64(0), np.uint64(len(pieces))
    for token in range(np.uint64(id_offsets[0]), np.uint64(id_offsets[-1])):
        piece = np.uint64(ids[token])
        at, last = np.uint64(piece_offsets[piece]), np.uint64(piece_offsets[piece + one])
        end = out + (last - at)
        if last + word <= available:
            while at < last:
                a, b, c, d = pieces[at], pieces[at + one], pieces[at + two], pieces[at + three]
                e, f, g, h = pieces[at + four], pieces[at + five], pieces[at + six], pieces[at + seven]
                data[out], data[out + one], data[out + two], data[out + three] = a, b, c, d
                data[out + four], data[out + five], data[out + six], data[out + seven] = e, f, g, h
                at += word
                out += word
        while at < last:  # the very last pieces
            data[out] = pieces[at]
            at += one
            out += one
        out = end
