"""Two parts of one softmax, put together by their log-sum-exps."""
# ruff: noqa: N803, N806 (the axes are capital letters)

import torch
from torch import Tensor


def merge(out_THE: Tensor, lse_TH: Tensor, other_THE: Tensor, other_lse_TH: Tensor) -> tuple[Tensor, Tensor]:
    """(out_THE, lse_TH) over the keys of both parts, in float32 (Hydragen, arXiv 2402.05099, section 3.1).

    With L = log(exp(L1) + exp(L2)), out = exp(L1 - L) out1 + exp(L2 - L) out2. A part without keys has L = -inf and
    weighs nothing; where neither has keys the result is 0.

    Args:
        lse_TH: float32, natural logarithms of the sums of exp(score) over a part's keys.
    """
    together_TH = torch.logaddexp(lse_TH, other_lse_TH)
    finite_TH = together_TH.masked_fill(together_TH == -torch.inf, 0.0)
    weight, other_weight = ((each - finite_TH).exp()[..., None] for each in (lse_TH, other_lse_TH))
    return out_THE.float() * weight + other_THE.float() * other_weight, together_TH
