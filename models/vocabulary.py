"""Giving a model more ids: what merged ids stand for, as rows of the embedding and the head."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.transformer import Model


@torch.no_grad()
def extend_vocabulary(model: Model, offsets: np.ndarray, base_ids: np.ndarray) -> Model:
    """A copy of a model that knows merged ids: each new row is the mean of the rows that it stands for.

    This is fast vocabulary transfer (Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression"): no
    training, and logits of the ids that the model had stay as they are.

    Args:
        model: its ids are 0 to vocab_size - 1.
        offsets: int64[larger vocabulary + 1] into `base_ids`, as `MergeTable.expansions` gives them.
        base_ids: integers[...], the ids that each id stands for; the model's own stand for themselves.

    Raises:
        UserError: the table was made for another vocabulary.
    """
    known = model.config.vocab_size
    first = slice(0, min(known, len(offsets) - 1))
    alone = len(offsets) > known and np.array_equal(base_ids[offsets[:known]], np.arange(known))
    if not alone or (np.diff(offsets)[first] != 1).any() or base_ids.max(initial=0) >= known:
        raise UserError(
            f"the merge table does not extend a vocabulary of {known} ids: its first {known} ids must stand for "
            "themselves and the others for them; learn it with the tokenizer of the model"
        )
    device = model.device
    larger = Model(replace(model.config, vocab_size=len(offsets) - 1), None).to(device, model.embedding.weight.dtype)
    tables = {"embedding.weight"} if model.head is None else {"embedding.weight", "head.weight"}
    larger.load_state_dict({k: v for k, v in model.state_dict().items() if k not in tables}, strict=False)
    numbers = torch.from_numpy(base_ids.astype(np.int64)).to(device)
    bounds = torch.from_numpy(offsets.astype(np.int64)).to(device)
    for name in tables:
        rows = larger.get_parameter(name)
        rows[len(offsets) - 1 :] = 0
        rows[: len(offsets) - 1] = _means(model.get_parameter(name), numbers, bounds).to(rows.dtype)
    return larger


def _means(rows: Tensor, numbers: Tensor, bounds: Tensor) -> Tensor:
    """The mean of rows[numbers[bounds[k] : bounds[k + 1]]] for every k, in float32."""
    return torch.segment_reduce(rows[numbers].float(), "mean", offsets=bounds, axis=0)
