"""What follows the sequences of a pass: from their hidden vectors to tokens."""
# ruff: noqa: N803, N806 (the axes are capital letters)

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from seqmill.models.inference.live import Ready
from seqmill.models.inference.sampling import Sampling, pick_tokens
from seqmill.models.transformer import Model

LOGITS_AT_ONCE = 1 << 26  # 256 MiB of float32


def choose(
    model: Model, hidden_TD: Tensor, ready: Sequence[Ready], top_k: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What follows each of the rows of every sequence, int64[rows], and the `top_k` likeliest ids there,
    int64[rows, top_k]."""
    picked, best = list[np.ndarray](), list[np.ndarray]()
    for some in _parts(ready, max(1, LOGITS_AT_ONCE // model.config.padded_vocab)):
        rows = torch.from_numpy(np.concatenate([each.rows for each in some]))
        logits_BV = model.logits(hidden_TD.index_select(0, rows.to(hidden_TD.device)))
        bounds = np.cumsum([len(each.rows) for each in some])[:-1]
        best += np.split(_likeliest(logits_BV, top_k), bounds)
        picked += np.split(_pick(some, logits_BV), bounds)
    return picked, best


def _likeliest(logits_BV: Tensor, top_k: int) -> np.ndarray:
    """int64[B, top_k], or fewer in a small vocabulary; likeliest first."""
    if not top_k:
        return np.empty((len(logits_BV), 0), np.int64)
    return logits_BV.topk(min(top_k, logits_BV.shape[1]), dim=-1).indices.cpu().numpy()


def _parts(ready: Sequence[Ready], most: int) -> Iterator[list[Ready]]:
    """In order: as many as have `most` rows together, or one that has more."""
    part, rows = list[Ready](), 0
    for each in ready:
        if part and rows + len(each.rows) > most:
            yield part
            part, rows = [], 0
        part.append(each)
        rows += len(each.rows)
    if part:
        yield part


def _pick(ready: Sequence[Ready], logits_BV: Tensor) -> np.ndarray:
    """int64[B]: what follows each row, by the sampling and the draw of its sequence."""
    row = 0
    draws: list[float] = []
    by_sampling: dict[Sampling, list[int]] = {}
    for each in ready:
        live = each.live
        allowed = live.request.first_ids
        if allowed is not None and not live.tokens:
            logits_BV[row, : allowed.start] = -torch.inf
            logits_BV[row, allowed.stop :] = -torch.inf
        draws += live.draws.at(len(live.tokens) + each.depths).tolist()
        by_sampling.setdefault(live.request.sampling, []).extend(range(row, row + len(each.rows)))
        row += len(each.rows)
    draws_B = torch.tensor(draws, dtype=torch.float64)
    picked = torch.empty(row, dtype=torch.int64)
    for sampling, rows in by_sampling.items():
        rows_R = torch.tensor(rows)
        chosen = logits_BV if len(rows) == row else logits_BV[rows_R.to(logits_BV.device)]
        picked[rows_R] = pick_tokens(chosen, draws_B[rows_R].to(logits_BV.device), sampling).cpu()
    return picked.numpy()
