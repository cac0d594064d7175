from typing import Any

import pytest
import torch

from seqmill.errors import UserError
from seqmill.models.attention import FULL, Pattern
from seqmill.models.memory import PLAIN, MemorySettings


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"checkpoint": "all"}, "checkpoint = 'all': there is no such way; choose none, layer, keep-attention"),
        ({"mlp_tile": 0}, "mlp_tile = 0: must be 1 token or more"),
        ({"stream_chunk": -5}, "stream_chunk = -5: must be 1 token or more"),
        ({"stream_chunk": 8, "checkpoint": "layer"}, "stream_chunk = 8 and checkpoint = 'layer': a streamed layer"),
        ({"stream_chunk": 8, "mlp_tile": 4}, "stream_chunk = 8 and mlp_tile = 4: a streamed layer runs SwiGLU"),
        ({"offload": True}, "offload = true moves what checkpointed and streamed layers keep, and there are none"),
        ({"offload": True, "mlp_tile": 4}, "and there are none"),
    ],
)
def test_what_is_impossible_is_refused_with_the_way_out(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        MemorySettings(**values)


def test_offload_needs_a_device_with_memory_of_its_own() -> None:
    settings = MemorySettings(checkpoint="layer", offload=True)
    settings.require_possible(torch.device("cuda"), [FULL])
    with pytest.raises(UserError, match="the model lies on cpu; train with --device cuda or leave offload out"):
        settings.require_possible(torch.device("cpu"), [FULL])
    PLAIN.require_possible(torch.device("cpu"), [FULL])


def test_a_streamed_layer_has_no_window() -> None:
    patterns = [FULL, Pattern(window=8, sinks=1)]
    MemorySettings(checkpoint="layer").require_possible(torch.device("cpu"), patterns)
    with pytest.raises(UserError, match="layers of this model see 8 tokens of it; use checkpoint = 'layer'"):
        MemorySettings(stream_chunk=4).require_possible(torch.device("cpu"), patterns)
