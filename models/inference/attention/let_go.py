"""What a cache policy leaves of positions whose pages were given back: sinks that move near, and their mean."""
# ruff: noqa: N803, N806 (the axes are capital letters)

from collections.abc import Sequence

import torch
from torch import Tensor

from seqmill.models.inference.attention.gathered import attend_gathered
from seqmill.models.inference.cache import Mean, Place
from seqmill.models.rotary import rotate


def attend_to_near_sinks(
    q_THE: Tensor,
    k_KSE: Tensor,
    v_KSE: Tensor,
    rows_R: Tensor,
    slots_RL: Tensor,
    mask_RL: Tensor,
    turned: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The rows `rows_R` attend to the slots of their sinks, with their queries turned by `turned`, a rotary table of
    the positions that they move; None: they have no rotary positions.

    Keys keep the rotation of their own positions, and only differences of positions matter to a score, so to turn the
    query back by n positions is to bring the key n positions nearer.
    """
    q_RHE = q_THE.index_select(0, rows_R)
    q_RHE = rotate(q_RHE, turned) if turned is not None else q_RHE
    k_RLKE, v_RLKE = (x[:, slots_RL].permute(1, 2, 0, 3) for x in (k_KSE, v_KSE))
    out, lse = attend_gathered(q_RHE[:, None], k_RLKE, v_RLKE, mask_RL[:, None])
    return spread(q_THE, rows_R, out[:, 0], lse[:, 0])


def attend_to_means(place: Place, q_THE: Tensor, rows_R: Tensor, means: Sequence[Mean]) -> tuple[Tensor, Tensor]:
    """The rows `rows_R` attend to the mean key and value of what their sequences let go of, which weighs as much as
    its `tokens` positions would if all had this key: log(tokens) is added to the score."""
    heads = slice(place.first, place.first + len(place.heads))
    key_RKE, value_RKE = (
        torch.stack([sums[heads] / mean.tokens for mean, sums in zip(means, each, strict=True)])
        for each in ([mean.key_sum_NE for mean in means], [mean.value_sum_NE for mean in means])
    )
    counts_R = torch.tensor([mean.tokens for mean in means], dtype=torch.float32, device=q_THE.device)
    group = q_THE.shape[1] // len(place.heads)
    q_RHE = q_THE.index_select(0, rows_R).float()
    score_RH = (q_RHE * key_RKE.repeat_interleave(group, 1)).sum(-1) * q_THE.shape[-1] ** -0.5
    lse_RH = score_RH + counts_R.log()[:, None]
    return spread(q_THE, rows_R, value_RKE.repeat_interleave(group, 1), lse_RH)


def spread(q_THE: Tensor, rows_R: Tensor, out_RHE: Tensor, lse_RH: Tensor) -> tuple[Tensor, Tensor]:
    """The same among all rows; the others see nothing of it."""
    out_THE = torch.zeros(q_THE.shape, dtype=torch.float32, device=q_THE.device).index_copy_(0, rows_R, out_RHE)
    lse_TH = torch.full(q_THE.shape[:2], -torch.inf, device=q_THE.device).index_copy_(0, rows_R, lse_RH)
    return out_THE, lse_TH
