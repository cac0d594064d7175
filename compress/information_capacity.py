"""Information Capacity: how many bits a language model saves per token, for the size of its work on one.

    IC = (TS - NLL + b) / log2 F                                           Yuan, Shao, Li 2025, arXiv 2511.08066

TS bits of text that a token stands for (8 * bytes / tokens, mean over samples), NLL bits that the model needs for it
(mean over all tokens), F floating point operations for a generated token, b a constant that makes IC flat over the
sizes of one series of models. A tokenizer counts twice: more bytes per token make TS larger, more ids make F larger.

As in its authors' program: samples of up to 1,024 tokens, of which the first is not predicted and does not count;
logarithms of base 2; biases that they fitted for their sets of text. The mean of TS is over samples and that of NLL
over tokens, so short samples weigh more in the one than in the other. TS is not rounded here; theirs is, to two digits.

Worth a look beside it: bits per byte (`metrics`), which no choice of vocabulary can flatter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError

DECODED_TOKENS = 1024  # that F is the mean over, from an empty prompt
PUBLISHED_BIASES: Mapping[str, float] = MappingProxyType({"mixed_text": -24.0, "Ch-FineWeb-Edu": -18.7, "other": -27.0})


@dataclass(frozen=True)
class Architecture:
    """What a decoder's work depends on. Multi-head latent attention has a formula of its own and is not covered."""

    vocab_size: int  # ids that the head gives a logit
    dim: int  # width of the residual stream
    layers: int
    heads: int  # query heads
    kv_heads: int  # key and value heads: fewer than `heads` for grouped queries
    head_dim: int
    ffn_dim: int  # width of the feed-forward part; of one expert where there are several
    gated: bool = True  # three matrices in the feed-forward part, else two
    active_experts: int = 1  # that serve each token: routed and shared ones

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "gated" and value < 1:
                raise UserError(f"{name} = {value}: must be 1 or more")
        if self.heads % self.kv_heads:
            raise UserError(f"heads = {self.heads}, kv_heads = {self.kv_heads}: kv_heads must divide heads")


def flops_per_token(model: Architecture, prompt: int = 0, decoded: int = DECODED_TOKENS) -> float:
    """F: multiplications and additions of a generated token, the mean over `decoded` of them behind a prompt.

    A matrix of a x b takes 2ab. Attention of a token over n former ones takes 4 * heads * head_dim * n: scores and
    sums. Embeddings, norms, activations, the softmax and the router of experts count nothing.
    """
    queries = 4 * model.dim * model.heads * model.head_dim  # and the output
    keys = 4 * model.dim * model.kv_heads * model.head_dim  # and the values
    feed_forward = (6 if model.gated else 4) * model.dim * model.ffn_dim * model.active_experts
    former = prompt + (decoded - 1) / 2  # tokens that an average one attends to
    attention = 4 * model.heads * model.head_dim * former
    return model.layers * (queries + keys + feed_forward + attention) + 2 * model.dim * model.vocab_size


@dataclass(frozen=True)
class TextScore:
    """A model on a set of samples."""

    text_size: float  # TS, bits of text per token
    nll: float  # NLL, bits per token that the model needs


def text_score(
    num_bytes: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], nats: npt.NDArray[np.float64]
) -> TextScore:
    """TS and NLL from sums of samples.

    Args:
        num_bytes: int64[samples], bytes of the text that the predicted tokens stand for: without the first token's.
        targets: int64[samples], predicted tokens: all but the first.
        nats: float64[samples], the loss summed over them.

    Raises:
        UserError: there is no sample, or one without a predicted token.
    """
    if not len(targets) or targets.min() < 1:
        raise UserError("Information Capacity needs samples of two tokens or more: leave shorter ones out")
    return TextScore(float(np.mean(8 * num_bytes / targets)), math.fsum(nats) / (int(targets.sum()) * math.log(2)))


def information_capacity(score: TextScore, flops: float, bias: float = 0.0) -> float:
    """IC(b). With b = 0 it compares models of any series; see `PUBLISHED_BIASES` for others.

    Args:
        flops: F, from `flops_per_token`.
        bias: b, bits per token.

    Raises:
        UserError: F is no more than 1, of which there is no logarithm to divide by.
    """
    if flops <= 1:
        raise UserError(f"flops = {flops}: more than one operation per token is needed")
    return (score.text_size - score.nll + bias) / math.log2(flops)


def fit_bias(scores: Sequence[TextScore], flops: Sequence[float]) -> float:
    """The b that makes IC(b) vary least over a series of models: what their differences in size explain.

    With a = (TS - NLL) / log2 F and u = 1 / log2 F, IC = a + b u, and its variance is least at b = -cov(a, u) / var(u).

    Raises:
        UserError: fewer than two models, or all of one size.
    """
    saved = np.array([score.text_size - score.nll for score in scores])
    per_bit = 1 / np.log2(np.array(flops, np.float64))
    if len(saved) != len(per_bit) or len(saved) < 2 or np.ptp(per_bit) == 0:
        raise UserError(f"{len(scores)} scores and F = {list(flops)}: a bias is fitted to models of two sizes or more")
    centred = per_bit - per_bit.mean()
    return float(-(saved * per_bit) @ centred / (centred @ centred))
