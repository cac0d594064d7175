"""What a token sees of its own document, layer by layer."""

from dataclasses import dataclass

from torch import Tensor

from seqmill.models.config import ModelConfig


@dataclass(frozen=True)
class Pattern:
    """What the tokens of one layer see: themselves, and of what stands before them all or a part.

    With window = 3 and sinks = 1, token 6 of a document sees tokens 0, 4, 5 and 6.
    """

    window: int | None = None  # tokens that each token sees back, itself included; None: all
    sinks: int = 0  # first tokens of the document that all later ones see besides (Xiao et al. 2023, arXiv 2309.17453)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """bool, in the shape that the two broadcast to: whether position `query` of a document sees its `key`."""
        causal = key <= query
        if self.window is None:
            return causal
        near = query - key < self.window
        return causal & (near | (key < self.sinks) if self.sinks else near)

    def on(self, longest: int) -> "Pattern":
        """The same for documents of at most `longest` tokens: all, where the window is as long."""
        return FULL if self.window is None or longest <= self.window else self


FULL = Pattern()


def layer_patterns(config: ModelConfig) -> tuple[Pattern, ...]:
    """What the tokens of each layer see."""
    local = Pattern(config.window, config.sinks)
    return tuple(FULL if config.is_full(layer) else local for layer in range(config.layers))
