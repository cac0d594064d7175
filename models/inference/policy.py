"""What generated tokens keep of what stands before them, for models that were trained to see all of it.

A prompt is read as the model was trained to; from the first generated token on, heads that do not keep everything see
the last `window` tokens and the first `sinks`, and the pages in between are given back, so that a text can go on
without end in a cache that does not grow.

    StreamingLLM    CachePolicy(window=1020, sinks=4)                                     Xiao et al., arXiv 2309.17453
    RazorAttention  CachePolicy(window, sinks, is_near=False, has_mean=True,              Tang et al., arXiv 2407.15891
                                full_heads=retrieval_heads(model))
"""

from dataclasses import dataclass

from seqmill.errors import UserError
from seqmill.models.config import ModelConfig

Head = tuple[int, int]
"""(layer, key-value head)."""


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """What generated tokens see in layers that see all while a prompt is read.

    Raises:
        UserError: a value is impossible.
    """

    window: int  # tokens back, itself included
    sinks: int = 4  # first tokens of the sequence, seen for good
    is_near: bool = True  # rotary distances to sinks are those in a text without what was let go (StreamingLLM, 3.2)
    has_mean: bool = False  # the mean key and value of what was let go stay, weighing as much as it (RazorAttention)
    full_heads: frozenset[Head] = frozenset()  # heads that see all

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"window = {self.window}: a token sees at least itself, so it must be 1 or more")
        if self.sinks < 0:
            raise UserError(f"sinks = {self.sinks}: must be 0 or more")

    def check(self, config: ModelConfig) -> None:
        """Whether a model has these heads.

        Raises:
            UserError: it has not.
        """
        for layer, head in self.full_heads:
            if not (0 <= layer < config.layers and 0 <= head < config.kv_heads):
                raise UserError(
                    f"full_heads has layer {layer}, head {head}; the model has layers 0 .. {config.layers - 1} of "
                    f"key-value heads 0 .. {config.kv_heads - 1}"
                )
