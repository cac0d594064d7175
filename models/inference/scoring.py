"""How well a model foresees every token of texts."""
# ruff: noqa: N806 (the axes of tensors are capital letters)

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from seqmill.models.inference.passes import PASS_TOKENS, Pass, packed_passes
from seqmill.models.inference.ragged import Ragged
from seqmill.models.loss import CHUNK_LOGITS
from seqmill.models.transformer import Model

Float32s = npt.NDArray[np.float32]


@torch.inference_mode()
def score(
    model: Model, sequences: Sequence[Sequence[int]] | Sequence[np.ndarray], *, prefill_tokens: int = PASS_TOKENS
) -> list[Float32s]:
    """How well the model foresees every token: for each sequence float32[len - 1].

    Number i is the natural logarithm of the probability of token i + 1 after tokens 0 .. i. How sequences are packed
    changes no more than the rounding of matrix kernels.

    Args:
        prefill_tokens: most tokens of one forward pass; a longer sequence goes alone, in chunks of so many.

    Raises:
        UserError: a sequence is empty or holds an id outside the vocabulary.
    """
    ragged = Ragged.of(sequences)
    ragged.require_readable(model.config.vocab_size)
    found = [token_log_probs(model, done) for done in packed_passes(model, ragged, prefill_tokens)]
    return ragged.split(np.concatenate([np.empty(0, np.float32), *found]), fewer=1)


def token_log_probs(model: Model, done: Pass) -> Float32s:
    """float32[T - sequences]: of every token but the first of each sequence; a chunk of logits at a time."""
    ends = np.cumsum(done.segments.lengths)
    foreseeing_P = torch.from_numpy(np.delete(np.arange(len(done.ids_T)), ends - 1)).to(model.device)
    chunk = max(1, CHUNK_LOGITS[model.device.type] // model.config.padded_vocab)
    parts = [
        model.logits(done.hidden_TD[rows_C]).log_softmax(dim=-1).gather(1, done.ids_T[rows_C + 1, None])[:, 0]
        for rows_C in foreseeing_P.split(chunk)
    ]
    return torch.cat(parts).cpu().numpy()
