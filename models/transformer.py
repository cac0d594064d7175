"""The decoder: ids of documents laid end to end -> one hidden vector per token -> logits.

Tensor names end in their axes: T tokens, D model width, H query heads, K key-value heads, E numbers per head, F width
inside SwiGLU, V vocabulary.
"""
# ruff: noqa: N803, N806, N812 (the axes are capital letters)

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqmill.models.attention import Segments, layer_patterns, prepare
from seqmill.models.config import ModelConfig
from seqmill.models.memory import PLAIN, LayerMemory, MemorySettings, layer_memory
from seqmill.models.moe import MixtureOfExperts
from seqmill.models.rotary import rotary_table, rotate

_EMBEDDING_STD = 0.02  # of the embedding and the head: first logits are small, the first loss is ln(vocabulary)

LayerAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_THE, k_TKE, v_TKE) -> out_THE: what a token attends to. Training packs documents, generation reads and
writes a cache; another cache or another mask is another such function, and the decoder stays as it is."""


def packed_attention(segments: Segments, backend: str, config: ModelConfig) -> LayerAttention:
    """Attention inside the documents of a ragged batch, as each layer of a model sees them."""
    prepared = [prepare(segments, pattern, backend) for pattern in layer_patterns(config)]
    return lambda layer, q_THE, k_TKE, v_TKE: prepared[layer](q_THE, k_TKE, v_TKE)


class RMSNorm(nn.Module):
    """Divide by the root mean square of the last axis, then scale; in float32 whatever the input."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised `x`, in the type of `x`."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


class Block(nn.Module):
    """One layer: attention, then SwiGLU or experts, each over a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.has_rotary = config.has_rotary(layer)
        self.heads = (config.heads, config.kv_heads, config.kv_heads)  # of q, k, v in one projection
        q_width = config.heads * config.head_dim
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.qkv = nn.Linear(config.dim, sum(self.heads) * config.head_dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.attention_out = nn.Linear(q_width, config.dim, bias=False)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.experts = MixtureOfExperts(config) if config.experts else None
        if self.experts is None:
            self.gate_up = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
            self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(
        self,
        x_TD: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention: LayerAttention,
        memory: LayerMemory | None = None,
    ) -> Tensor:
        """The residual stream after this layer; `memory` trades time for what is kept for the gradients."""
        if memory is not None:
            return memory(self, x_TD, rotary, attention)
        return self.add_feed_forward(self.add_attention(x_TD, rotary, attention))

    def add_attention(self, x_TD: Tensor, rotary: tuple[Tensor, Tensor], attention: LayerAttention) -> Tensor:
        """The residual stream after the first half of this layer."""
        return self.add_attended(x_TD, attention(self.layer, *self.project(x_TD, rotary)))

    def project(self, x_TD: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """q_THE, k_TKE, v_TKE, token by token."""
        qkv = self.qkv(self.attention_norm(x_TD)).unflatten(-1, (-1, self.head_dim))
        q_THE, k_TKE, v_TKE = qkv.split(self.heads, dim=1)
        q_THE, k_TKE = self.q_norm(q_THE), self.k_norm(k_TKE)
        if self.has_rotary:
            q_THE, k_TKE = rotate(q_THE, rotary), rotate(k_TKE, rotary)
        return q_THE, k_TKE, v_TKE

    def add_attended(self, x_TD: Tensor, out_THE: Tensor) -> Tensor:
        """The residual stream with what attention found, token by token."""
        return x_TD + self.attention_out(out_THE.flatten(1))

    def add_feed_forward(self, x_TD: Tensor) -> Tensor:
        """The residual stream after the second half of this layer, token by token."""
        if self.experts is not None:
            return x_TD + self.experts(self.ffn_norm(x_TD))
        gate_TF, up_TF = self.gate_up(self.ffn_norm(x_TD)).chunk(2, dim=-1)
        return x_TD + self.down(F.silu(gate_TF) * up_TF)


class Model(nn.Module):
    """A decoder and the config it was built from."""

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        """Build on the host; the weights are a function of the config and the seed.

        Args:
            seed: None leaves the weights unset, for a caller that fills them all.
        """
        super().__init__()
        self.config = config
        with torch.device("meta"):  # torch's own initial values would cost time and advance its global generator
            self.embedding = nn.Embedding(config.padded_vocab, config.dim)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
            self.norm = RMSNorm(config.dim, config.norm_eps)
            self.head = None if config.tied_head else nn.Linear(config.dim, config.padded_vocab, bias=False)
        self.to_empty(device="cpu")
        if seed is not None:
            self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Matrices keep the scale of their input (standard deviation 1 / sqrt(inputs)), whatever the width; the two of
        a layer that write to the residual stream get theirs divided by sqrt(2 layers)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                is_table = name in ("embedding.weight", "head.weight")
                std = _EMBEDDING_STD if is_table else parameter.shape[-1] ** -0.5
                if name.endswith(("attention_out.weight", "down.weight")):
                    std /= math.sqrt(2 * self.config.layers)
                parameter.normal_(0.0, std, generator=generator)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.weight.device

    @property
    def head_weight(self) -> Tensor:
        """[padded vocabulary, D]: one row per id, rows from `vocab_size` on being padding."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        segments: Segments,
        backend: str = "sdpa",
        memory: MemorySettings = PLAIN,
        attention: LayerAttention | None = None,
        plain: LayerMemory | None = None,
    ) -> Tensor:
        """hidden_TD, normalised, of documents that lie end to end and see only themselves.

        Args:
            memory: what is kept for the gradients, and what is computed again.
            attention: in place of the backend's, for tokens whose documents lie on other ranks too.
            plain: runs a layer in place of its own code (memory.layer_memory).

        Raises:
            UserError: this model or its device cannot do what `memory` asks for.
        """

        def attention_within(documents: Segments) -> LayerAttention:
            return packed_attention(documents, backend, self.config)

        memory.require_possible(self.device, layer_patterns(self.config))
        run_layer = layer_memory(memory, segments, attention_within, plain)
        return self.hidden(input_ids_T, position_ids_T, attention or attention_within(segments), run_layer)

    def hidden(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        attention: LayerAttention,
        memory: LayerMemory | None = None,
    ) -> Tensor:
        """hidden_TD, normalised, where `attention` says what each token sees and `memory` how a layer is run."""
        x_TD = self.embedding(input_ids_T)
        config = self.config
        rotary = rotary_table(position_ids_T, config.head_dim, config.rope_theta, config.rope_scaling)
        for block in self.blocks:
            x_TD = block(x_TD, rotary, attention, memory)
        normalised: Tensor = self.norm(x_TD)
        return normalised

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """float32 logits_TV over the real vocabulary, without its padding."""
        return F.linear(hidden_TD, self.head_weight)[:, : self.config.vocab_size].float()
