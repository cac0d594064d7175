"""Scores and embeddings of a column of ids: Arrow lists in, Arrow columns out."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from seqmill.errors import UserError
from seqmill.models.inference.embedding import find_pooling
from seqmill.models.inference.passes import PASS_TOKENS, packed_passes
from seqmill.models.inference.ragged import Ragged
from seqmill.models.inference.scoring import token_log_probs
from seqmill.models.transformer import Model


@torch.inference_mode()
def read_column(
    model: Model,
    ids: pa.Array,
    pooling: str | None = None,
    most_tokens: int = PASS_TOKENS,
    name_of: Callable[[int], str] = "row {}".format,
    start: int | None = None,
) -> pa.RecordBatch:
    """Score the rows of a column, and embed them in the same forward passes.

    Args:
        ids: (large_)list of integers; rows may be empty or null.
        pooling: of `seqmill.models.embed`; None for no embeddings.
        most_tokens: of one forward pass; a longer row goes alone, in chunks of so many.
        name_of: what errors call a row.
        start: an id that stands before the tokens of every row and is known; rows that begin with it stay as they are.

    Returns:
        tokens uint32 (predicted ones: all of a row but its first, which is predicted behind a `start`), log_prob
        float64 (their sum, natural logarithm; null without such a token), token_log_probs list<float32>, and with
        `pooling` embedding fixed_size_list<float32> (null for a row without a token).

    Raises:
        UserError: there is no such pooling, a row holds an id outside the vocabulary or a null, or a logarithm is no
            finite number.
    """
    pool = None if pooling is None else find_pooling(pooling)
    is_list = pa.types.is_list(ids.type) or pa.types.is_large_list(ids.type)
    if not is_list or not pa.types.is_integer(ids.type.value_type) or ids.flatten().null_count:
        raise UserError(f"ids of type {ids.type} cannot be read: lists of integers are needed, without nulls in them")
    lengths = pc.list_value_length(ids).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = Ragged.from_lengths(ids.flatten().to_numpy(), lengths)
    if found := rows.outside(model.config.vocab_size):
        raise UserError(
            f"{name_of(found[0])} holds the id {found[1]}, but the model's vocabulary is 0 .. "
            f"{model.config.vocab_size - 1}; encode it with the tokenizer that the model was trained with"
        )
    has_tokens = lengths > 0
    if start is not None:
        if start >= model.config.vocab_size:
            raise UserError(
                f"start = {start}, but the model's vocabulary is 0 .. {model.config.vocab_size - 1}; the tokenizer is "
                "not the model's own"
            )
        begins = np.cumsum(lengths) - lengths
        is_begun = has_tokens.copy()
        is_begun[has_tokens] = rows.ids[begins[has_tokens]] == start
        lengths = lengths + (has_tokens & ~is_begun)
        rows = Ragged.from_lengths(np.insert(rows.ids, begins[has_tokens & ~is_begun], start), lengths)
    log_probs, vectors = [np.empty(0, np.float32)], [np.empty((0, model.config.dim), np.float32)]
    for done in packed_passes(model, Ragged.from_lengths(rows.ids, lengths[has_tokens]), most_tokens):
        log_probs.append(token_log_probs(model, done))
        if pool is not None:
            vectors.append(pool(done).cpu().numpy())
    columns = _score_columns(np.concatenate(log_probs), np.maximum(lengths - 1, 0), name_of)
    if pool is not None:
        columns["embedding"] = _embedding_column(np.concatenate(vectors), has_tokens)
    return pa.RecordBatch.from_pydict(columns)


def _score_columns(log_probs: np.ndarray, tokens: np.ndarray, name_of: Callable[[int], str]) -> dict[str, pa.Array]:
    row = np.repeat(np.arange(len(tokens)), tokens)
    sums = np.bincount(row, log_probs, len(tokens)).astype(np.float64)  # integers where there is none
    if not np.isfinite(sums).all():
        raise UserError(
            f"the log-probability of {name_of(int(np.isfinite(sums).argmin()))} is no finite number: the weights are "
            "damaged, or their type cannot hold what they compute; score in float32, or with an earlier checkpoint"
        )
    offsets = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
    return {
        "tokens": pa.array(tokens.astype(np.uint32)),
        "log_prob": pa.array(sums, mask=tokens == 0),
        "token_log_probs": pa.ListArray.from_arrays(pa.array(offsets), pa.array(log_probs)),
    }


def _embedding_column(vectors: np.ndarray, is_there: np.ndarray) -> pa.FixedSizeListArray:
    """float32[rows that are there, dim] as one list a row, null for the others."""
    every = np.zeros((len(is_there), vectors.shape[1]), np.float32)
    every[is_there] = vectors
    return pa.FixedSizeListArray.from_arrays(pa.array(every.ravel()), every.shape[1], mask=pa.array(~is_there))
