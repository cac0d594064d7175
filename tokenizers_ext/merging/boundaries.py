"""Where tokens may not be merged: the borders that a rule draws through rows of ids."""

import numba
import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.gather import concatenate_pieces
from seqmill.tokenizers_ext.splitting import PATTERNS, pre_token_ends
from seqmill.tokenizers_ext.token_bytes import TokenBytes


def segments_of(ids: np.ndarray, row_offsets: np.ndarray, pieces: TokenBytes, rule: str) -> np.ndarray:
    """Number the stretches of tokens that a rule keeps apart: int32[tokens], ascending over all rows.

    A row is a stretch of its own, and so is every id without bytes: they are special. Rule "none" knows no other
    border; the others are keys of `splitting.PATTERNS`, and a token begins a stretch when a pre-token of the row's
    bytes begins within it.

    Args:
        ids: unsigned integers[tokens].
        row_offsets: int64[rows + 1] into ids.
        pieces: the bytes of every id, as `bytes_of_ids` gives them.
        rule: "none", or how bytes are cut.

    Raises:
        UserError: no such rule.
    """
    if rule != "none" and rule not in PATTERNS:
        raise UserError(f"rule = {rule!r}: choose one of none, {', '.join(PATTERNS)}")
    begins = np.zeros(len(ids) + 1, bool)
    begins[row_offsets] = True
    if rule != "none":
        text = concatenate_pieces(ids, row_offsets, *pieces)
        ends, _ = pre_token_ends(*offsets_and_bytes(text), rule)
        _mark_pre_tokens(ids, pieces[0], ends, begins)
    isolated = (np.diff(pieces[0]) == 0)[ids]
    begins[:-1] |= isolated
    begins[1:] |= isolated
    return np.cumsum(begins[:-1], dtype=np.int32) - np.int32(1)


@numba.njit(nogil=True, cache=True)
def _mark_pre_tokens(ids: np.ndarray, piece_offsets: np.ndarray, ends: np.ndarray, begins: np.ndarray) -> None:
    """Mark the tokens in which a pre-token begins: behind each of `ends`, positions in the bytes of all rows."""
    start, passed = 0, 0
    for t in range(len(ids)):
        stop = start + piece_offsets[ids[t] + 1] - piece_offsets[ids[t]]
        while passed < len(ends) and ends[passed] < stop:
            if ends[passed] >= start:
                begins[t] = True
            passed += 1
        start = stop


def flat_rows(ids: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all rows one after the other, and int64[rows + 1] offsets into them, from 0."""
    offsets = ids.offsets.to_numpy().astype(np.int64)
    return ids.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
