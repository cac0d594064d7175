"""A model with each of the memory settings against the same model that keeps everything."""

import contextlib
import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig
from seqmill.models.attention import Segments
from seqmill.models.memory import PLAIN, MemorySettings, prefix_attention
from tensor_memory import Watch, kept_for_gradients

LENGTHS = st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=1, max_size=6)
LAYER, KEEP = MemorySettings(checkpoint="layer"), MemorySettings(checkpoint="keep-attention")
STREAM = MemorySettings(stream_chunk=16)
ALL = (LAYER, KEEP, MemorySettings(mlp_tile=7), MemorySettings(checkpoint="layer", mlp_tile=7), STREAM)
KINDS = (
    {"qk_norm": True},
    {"kv_heads": 4},
    {"nope_every": 2},
    {"experts": 4, "experts_per_token": 2},
)
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


def run(model: Model, lengths: Sequence[int], memory: MemorySettings, half: bool = False) -> Tensor:
    """The hidden vectors of documents with these lengths."""
    segments = Segments.of(lengths)
    ids = torch.randint(100, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
        found: Tensor = model(ids, segments.positions(), segments, memory=memory)
    return found


def gradients(model: Model, lengths: Sequence[int], memory: MemorySettings, half: bool = False) -> dict[str, Tensor]:
    """The hidden vectors, and of every trained weight the gradient of a loss in which no two numbers count alike."""
    model.zero_grad()
    hidden = run(model, lengths, memory, half)
    factors = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    (hidden * factors.to(hidden.dtype)).sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert set(found) == {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {"hidden": hidden.detach(), **found}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Within a part of each tensor's largest number."""
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert (found[name] - tensor).abs().max() <= relative * tensor.abs().max(), name


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LENGTHS, st.sampled_from([torch.float32, torch.float64]))
@example([1] * 30, torch.float32)
@example([90], torch.float32)
@example([90], torch.float64)
def test_checkpoints_change_no_bit(model: Model, lengths: list[int], dtype: torch.dtype) -> None:
    model.to(dtype)
    expected = gradients(model, lengths, PLAIN)
    for memory in (LAYER, KEEP):
        found = gradients(model, lengths, memory)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LENGTHS, st.integers(1, 100), st.sampled_from([torch.float32, torch.float64]))
@example([1] * 30, 4, torch.float32)
@example([30, 4], 1, torch.float32)
@example([90], 1000, torch.float32)
@example([90], 17, torch.float64)
@example([3, 70, 2, 50, 1], 16, torch.float64)
def test_tiles_and_chunks_change_rounding_alone(
    model: Model, lengths: list[int], piece: int, dtype: torch.dtype
) -> None:
    """In float64 too the norms and the rotary turn are taken in float32, hence no more than a millionth."""
    model.to(dtype)
    expected = gradients(model, lengths, PLAIN)
    relative = 1e-5 if dtype == torch.float32 else 1e-6
    for memory in (
        MemorySettings(mlp_tile=piece),
        MemorySettings(checkpoint="keep-attention", mlp_tile=piece),
        MemorySettings(stream_chunk=piece),
    ):
        assert_close(gradients(model, lengths, memory), expected, relative)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_every_kind_of_layer_can_be_streamed(config: ModelConfig, changes: dict[str, int]) -> None:
    model = Model(dataclasses.replace(config, **changes), seed=1)  # type: ignore[arg-type]
    assert_close(gradients(model, [30, 70, 5], STREAM), gradients(model, [30, 70, 5], PLAIN), 1e-5)


@pytest.mark.parametrize("memory", ALL, ids=str)
def test_half_precision_is_that_of_the_plain_layer(model: Model, memory: MemorySettings) -> None:
    exact = gradients(model, [30, 70, 5], PLAIN)
    plain = gradients(model, [30, 70, 5], PLAIN, half=True)
    found = gradients(model, [30, 70, 5], memory, half=True)
    assert not torch.equal(found["hidden"], exact["hidden"])
    assert_close(found, plain, 0.03)
    # No further from the truth than half precision is anyway; which tensors are a little closer, the processor decides.
    off, off_plain = (
        torch.stack([(given[name] - tensor).norm() / tensor.norm() for name, tensor in exact.items()])
        for given in (found, plain)
    )
    assert off.norm() <= 1.1 * off_plain.norm()
    assert (off <= 2 * off_plain + 1e-6).all()


@pytest.mark.parametrize("memory", ALL, ids=str)
def test_another_document_changes_no_bit_of_a_document(model: Model, memory: MemorySettings) -> None:
    hidden = run(model, [30, 70, 5], memory)
    with torch.no_grad():
        ids = torch.randint(100, (105,), generator=torch.Generator().manual_seed(0))
        ids[30:100] = (ids[30:100] + 1) % 100
        segments = Segments.of([30, 70, 5])
        disturbed = model(ids, segments.positions(), segments, memory=memory)
    assert torch.equal(hidden[:30], disturbed[:30])
    assert torch.equal(hidden[100:], disturbed[100:])
    assert not torch.equal(hidden[30:100], disturbed[30:100])


@pytest.mark.parametrize("memory", ALL, ids=str)
def test_frozen_weights_get_no_gradient_and_the_others_theirs(model: Model, memory: MemorySettings) -> None:
    """Also where nothing below a layer is trained, as in fine-tuning."""
    model.embedding.weight.requires_grad_(False)
    first, second = model.blocks
    for weight in (*first.parameters(), second.qkv.weight):
        weight.requires_grad_(False)
    assert_close(gradients(model, [30, 20], memory), gradients(model, [30, 20], PLAIN), 1e-5)


@pytest.mark.parametrize(("memory", "times"), [(PLAIN, 1), (LAYER, 2), (KEEP, 1)], ids=str)
def test_attention_runs_once_a_layer_where_its_output_is_kept(model: Model, memory: MemorySettings, times: int) -> None:
    """Documents of unlike lengths are a call each."""
    with Watch() as watch:
        gradients(model, [100, 30, 5], memory)
    assert watch.calls[ATTENTION] == times * model.config.layers * 3


def kept_per_layer(config: ModelConfig, memory: MemorySettings, tokens: int) -> float:
    """Numbers a token that a layer keeps: what another layer adds."""

    def kept(layers: int) -> int:
        model = Model(dataclasses.replace(config, layers=layers))
        with kept_for_gradients() as tensors:
            run(model, [tokens], memory)
        storages = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    return (kept(3) - kept(2)) / 4 / tokens


def test_a_layer_keeps_its_input_alone(config: ModelConfig) -> None:
    """What offload moves. The attention that "keep-attention" keeps is held apart, and counted below."""
    assert kept_per_layer(config, PLAIN, 64) > 15 * config.dim
    for memory in (LAYER, KEEP, STREAM):
        assert kept_per_layer(config, memory, 64) == config.dim
    assert kept_per_layer(config, MemorySettings(checkpoint="layer", mlp_tile=16), 64) == 2 * config.dim


def peak(model: Model, lengths: Sequence[int], memory: MemorySettings) -> int:
    """The most bytes of tensors at once in a forward and backward pass."""
    model.zero_grad()
    with Watch() as watch:
        run(model, lengths, memory).sum().backward()
    return watch.peak


def test_each_way_needs_less_memory_than_the_one_it_goes_beyond(config: ModelConfig) -> None:
    model = Model(dataclasses.replace(config, layers=5, ffn_dim=256))
    tiled = dataclasses.replace(LAYER, mlp_tile=64)
    plain, keep, layer, mlp_alone, mlp_too, stream = (
        peak(model, [512], memory)
        for memory in (PLAIN, KEEP, LAYER, MemorySettings(mlp_tile=64), tiled, MemorySettings(stream_chunk=64))
    )
    assert plain > 2 * keep > 2 * layer
    assert plain > 2 * mlp_alone
    assert layer > 1.2 * mlp_too
    assert layer > 2 * stream


def test_keeping_attention_costs_its_output_and_one_number_a_head(config: ModelConfig) -> None:
    costs = []
    for layers in (4, 8):
        model = Model(dataclasses.replace(config, layers=layers))
        costs.append(peak(model, [256], KEEP) - peak(model, [256], LAYER))
    assert (costs[1] - costs[0]) / 4 / 4 / 256 == pytest.approx(config.heads * (config.head_dim + 1), rel=0.1)


def test_the_memory_of_a_streamed_document_grows_no_faster_than_its_length(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_attention, "_TILE_QUERIES", 64)
    model = Model(dataclasses.replace(config, layers=1))
    short, twice, again = (peak(model, [tokens], MemorySettings(stream_chunk=64)) for tokens in (512, 1024, 2048))
    assert again - twice <= 2.05 * (twice - short)


def test_long_prompts_can_be_streamed_without_gradients(model: Model) -> None:
    with torch.no_grad():
        expected, found = (run(model, [90, 20], memory) for memory in (PLAIN, STREAM))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_offload_is_refused_on_the_host(model: Model) -> None:
    with pytest.raises(UserError, match="offload = true moves tensors from a GPU"):
        run(model, [4], MemorySettings(checkpoint="layer", offload=True))
