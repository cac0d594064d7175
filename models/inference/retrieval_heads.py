"""Heads that look things up far back, found by what they attend to in a text that repeats itself."""
# ruff: noqa: N803, N806 (the axes are capital letters)

import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.inference.policy import Head
from seqmill.models.transformer import Model


@torch.inference_mode()
def retrieval_heads(
    model: Model, share: float = 0.15, *, tokens: int = 256, repeats: int = 4, seed: int = 0
) -> frozenset[Head]:
    """The key-value heads that a cache should keep whole (RazorAttention, arXiv 2407.15891, section 3.2).

    Random tokens are shown `repeats` times over. In the later rounds a head that looks a token up attends to where the
    same token stood before (an echo head) or to the token after that (an induction head): its score is the mean weight
    that it gives to such places. The heads with the highest scores are taken, by their best query head.

    Args:
        share: part of the key-value heads of the model that are taken, rounded up.
        tokens: of one round.

    Raises:
        UserError: `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share = {share}: must be between 0 and 1")
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    ids_T = torch.randint(config.vocab_size, (tokens,), generator=generator).repeat(repeats).to(model.device)
    scores = torch.zeros(config.layers, config.kv_heads)

    def attention(layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        group = config.heads // config.kv_heads
        out_THE = torch.empty_like(q_THE)
        for head in range(config.heads):
            p_TT = _weights(q_THE[:, head], k_TKE[:, head // group])
            out_THE[:, head] = (p_TT @ v_TKE[:, head // group].float()).to(q_THE.dtype)
            looked_up = max(_looked_up(p_TT, tokens, shift) for shift in (0, 1))
            scores[layer, head // group] = max(float(scores[layer, head // group]), looked_up)
        return out_THE

    model.hidden(ids_T, torch.arange(len(ids_T), device=model.device), attention)
    count = -(-round(share * scores.numel() * 1e6) // 1_000_000)
    best = scores.flatten().argsort(descending=True, stable=True)[:count]
    return frozenset((int(each) // config.kv_heads, int(each) % config.kv_heads) for each in best)


def _weights(q_TE: Tensor, k_TE: Tensor) -> Tensor:
    """p_TT of one head, causal."""
    scores_TT = q_TE.float() @ k_TE.float().T * q_TE.shape[-1] ** -0.5
    return scores_TT.masked_fill(torch.ones_like(scores_TT, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def _looked_up(p_TT: Tensor, tokens: int, shift: int) -> float:
    """The mean weight that tokens of the later rounds give, over all earlier rounds, to the place of the same token
    (shift 0) or to the one after it (shift 1)."""
    total = torch.zeros(len(p_TT) - tokens, device=p_TT.device)
    query_T = torch.arange(tokens, len(p_TT), device=p_TT.device)
    for back in range(tokens, len(p_TT), tokens):
        key_T = query_T - back + shift
        total += torch.where(key_T >= 0, p_TT[query_T, key_T.clamp(min=0)], 0.0)
    return float(total.mean())
