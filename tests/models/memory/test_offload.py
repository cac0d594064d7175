import pytest
import torch
from torch import Tensor

from seqmill.models import Model, ModelConfig
from seqmill.models.attention import Segments
from seqmill.models.memory import MemorySettings


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "settings", [{"checkpoint": "layer"}, {"checkpoint": "keep-attention"}, {"stream_chunk": 512}], ids=str
)
def test_what_layers_keep_leaves_the_device_and_gradients_stay_the_same(settings: dict[str, object]) -> None:
    layers, tokens = 16, 4096
    config = ModelConfig(vocab_size=100, dim=256, layers=layers, heads=4, kv_heads=2, head_dim=64, ffn_dim=512)
    model = Model(config).cuda()
    segments = Segments.of([1000, 3000, 96], "cuda")
    ids = torch.randint(100, (tokens,), generator=torch.Generator().manual_seed(0)).cuda()

    def step(offload: bool) -> tuple[int, list[Tensor]]:
        model.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        memory = MemorySettings(**settings, offload=offload)  # type: ignore[arg-type]
        model(ids, segments.positions().cuda(), segments, memory=memory).square().sum().backward()
        peak = torch.cuda.max_memory_allocated() - before
        return peak, [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    step(False)  # loads kernels and their workspaces
    (on_device, expected), (on_host, found) = step(False), step(True)
    assert on_device - on_host > (layers - 4) * tokens * config.dim * 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
