"""A part of attention with its keys laid side by side: on any device, and the reference for the others."""
# ruff: noqa: N803, N806 (the axes are capital letters)

import torch
from torch import Tensor

_MOST_SCORES = 1 << 25  # that are held at one time


def attend_gathered(
    q_BQHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, mask_BQL: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Let every query attend to the keys of its piece that its mask has.

    Args:
        mask_BQL: bool; None: all keys. Keys that no query of their piece sees must be finite.

    Returns:
        out_BQHE, float32, 0 where a query has no key; and lse_BQH, float32, -inf there.
    """
    batch, queries, heads, _ = q_BQHE.shape
    keys, kv_heads = k_BLKE.shape[1:3]
    rows = max(1, _MOST_SCORES // max(1, batch * heads * keys))
    if queries > rows:
        parts = [
            attend_gathered(
                q_BQHE[:, at : at + rows], k_BLKE, v_BLKE, None if mask_BQL is None else mask_BQL[:, at : at + rows]
            )
            for at in range(0, queries, rows)
        ]
        return torch.cat([out for out, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)
    q_BKXE = q_BQHE.unflatten(2, (kv_heads, -1)).permute(0, 2, 1, 3, 4).flatten(2, 3)  # X: queries x group
    k_BKEL, v_BKLE = k_BLKE.permute(0, 2, 3, 1), v_BLKE.transpose(1, 2)
    scores_BKXL = q_BKXE.float() @ k_BKEL.float() * q_BQHE.shape[-1] ** -0.5
    if mask_BQL is not None:
        hidden_BKXL = ~mask_BQL[:, None].repeat_interleave(heads // kv_heads, dim=2)
        scores_BKXL = scores_BKXL.masked_fill(hidden_BKXL, -torch.inf)
    lse_BKX = scores_BKXL.logsumexp(-1)
    finite_BKX = lse_BKX.masked_fill(lse_BKX == -torch.inf, 0.0)
    p_BKXL = (scores_BKXL - finite_BKX[..., None]).exp()
    out_BKXE = (p_BKXL.to(v_BLKE.dtype) @ v_BKLE).float()
    out_BQHE = out_BKXE.unflatten(2, (queries, -1)).permute(0, 2, 1, 3, 4).flatten(2, 3)
    lse_BQH = lse_BKX.unflatten(2, (queries, -1)).permute(0, 2, 1, 3).flatten(2)
    return out_BQHE, lse_BQH


def attend_fused(q_QHE: Tensor, k_LKE: Tensor, v_LKE: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """One piece that sees all of its keys, or as many as it has queries causally, without holding the scores.

    On a processor in float32 torch has such a kernel that tells the log-sum-exps; elsewhere `attend_gathered` serves.

    Returns:
        out_QHE and lse_QH, float32.
    """
    if q_QHE.is_cuda or q_QHE.dtype != torch.float32:
        shape = (1, len(q_QHE), len(k_LKE))
        mask_1QL = torch.ones(shape, dtype=torch.bool, device=q_QHE.device).tril() if is_causal else None
        out_1QHE, lse_1QH = attend_gathered(q_QHE[None], k_LKE[None], v_LKE[None], mask_1QL)
        return out_1QHE[0], lse_1QH[0]
    queries, group = len(q_QHE), q_QHE.shape[1] // k_LKE.shape[1]
    if is_causal:
        q_HXE = q_QHE.transpose(0, 1)
        k_LKE, v_LKE = (x.repeat_interleave(group, dim=1) for x in (k_LKE, v_LKE))
    else:  # all query heads of a key-value head are so many more queries of it: nothing is repeated
        q_HXE = q_QHE.unflatten(1, (-1, group)).permute(1, 2, 0, 3).flatten(1, 2)
    k_1HLE, v_1HLE = (x.transpose(0, 1)[None] for x in (k_LKE, v_LKE))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out_1HXE, lse_1HX = kernel(q_HXE[None], k_1HLE, v_1HLE, 0.0, is_causal)
    out_HQE, lse_HQ = out_1HXE[0].reshape(-1, queries, q_QHE.shape[2]), lse_1HX[0].reshape(-1, queries)
    return out_HQE.transpose(0, 1), lse_HQ.transpose(0, 1)
