"""Compiled layers and loss: the numbers of plain ones, and a graph for every size, whatever documents lie in it."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, TrainConfig, train
from seqmill.models.loss import IGNORED
from seqmill.models.memory import MemorySettings
from seqmill.models.training.compiled import SIZES, static_length
from seqmill.models.training.gradients import UpdateLoss, accumulate_gradients, split_batch
from seqmill.models.training.packed_loss import LossSettings, PackedLoss
from seqmill.models.training.spread import Spread
from seqmill.packing import PackedDataset

CPU = torch.device("cpu")
TRACED = "aot_eager"  # torch's own tracing and gradients, without the C++ compiler: seconds instead of a minute
LAYOUTS = ([64, 64], [100, 20, 5], [2] * 60, [30, 3, 60, 29])  # up to 128 tokens, and more than 112
SHAPE = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_dim": 48}


@pytest.fixture(autouse=True)
def _from_nothing() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def batch_of(lengths: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(0, 100, (sum(lengths),), generator=generator)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    targets = ids.roll(-1)
    targets[bounds[1:] - 1] = IGNORED
    positions = torch.cat([torch.arange(length) for length in lengths])
    batch = {"input_ids": ids, "targets": targets, "position_ids": positions, "cu_seqlens": bounds}
    return {**batch, "global_loss_tokens": int((targets != IGNORED).sum())}


def update(model: Model, batch: dict[str, Any], most: int, **settings: Any) -> tuple[UpdateLoss, dict[str, Any]]:
    """The loss of an update, and its gradients."""
    loss = Spread.alone(PackedLoss(model, LossSettings(z_loss=1e-3, **settings)))
    found = accumulate_gradients(loss, batch, CPU, most)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found, gradients


def assert_same_update(model: Model, batch: dict[str, Any], most: int, **settings: Any) -> UpdateLoss:
    """Compiled code finds the loss and the gradients of plain code; its loss is returned."""
    compiled, gradients = update(model, batch, most, compiler=TRACED, **settings)
    plain, expected = update(model, batch, most, **settings)
    for name in ("objective", "mean", "nats"):
        assert getattr(compiled, name) == pytest.approx(getattr(plain, name), rel=1e-6)
    assert (compiled.tokens, compiled.squares, compiled.targets) == (plain.tokens, plain.squares, plain.targets)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert gradient.any(), name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6 * largest)
    return compiled


def test_four_layouts_of_documents_are_one_graph_for_each_half_of_a_layer_and_the_loss(model: Model) -> None:
    for lengths in LAYOUTS:
        found = assert_same_update(model, batch_of(lengths), 128)
        assert (found.tokens, found.places) == (sum(lengths), 128)
        assert graphs() == 3


@pytest.mark.wide
def test_a_size_is_compiled_once_whatever_comes_between(model: Model) -> None:
    for last in (3, 1):  # micro-batches of 30, 29, 31 and 32 tokens, and this one
        found = assert_same_update(model, batch_of([20, 10, 29, 30, 1, 32, last]), 32)
        assert found.places == 4 * 32 + 4
        assert graphs() == 2 * 3


def test_checkpoints_and_half_precision_compile_too(model: Model) -> None:
    for checkpoint in ("layer", "keep-attention"):
        assert_same_update(model, batch_of(LAYOUTS[1]), 128, memory=MemorySettings(checkpoint=checkpoint))
    assert graphs() == 3
    assert_same_update(model, batch_of(LAYOUTS[1]), 128, dtype=torch.bfloat16)
    assert graphs() == 6


@pytest.mark.wide
def test_layers_with_and_without_rotary_turn_have_a_graph_each(config: ModelConfig) -> None:
    model = Model(dataclasses.replace(config, layers=4, nope_every=2, qk_norm=True), seed=1)
    assert_same_update(model, batch_of(LAYOUTS[3]), 128)
    assert graphs() == 4


@given(tokens=st.integers(1, 5000), most=st.integers(1, 5000))
def test_a_static_length_holds_the_tokens_with_few_pads_and_is_one_of_few(tokens: int, most: int) -> None:
    length = static_length(tokens, most)
    assert tokens <= length < tokens + -(-most // SIZES)
    assert tokens > most or length in {-(-most // SIZES) * k for k in range(1, SIZES + 1)}


def test_pads_are_a_segment_behind_the_documents_with_no_target(packed: Path) -> None:
    batch = PackedDataset(packed, batch_rows=5, normalisation="sample-mean").batch_at(0)
    parts, padded = (list(split_batch(batch, 100, CPU, is_padded)) for is_padded in (False, True))
    assert {len(part.input_ids_T) % 13 for part in padded} == {0}
    for part, other in zip(parts, padded, strict=True):
        assert part.lengths == other.lengths
        assert other.segments.lengths == (*part.lengths, other.pads)
        real = len(part.input_ids_T)
        assert torch.equal(other.input_ids_T[:real], part.input_ids_T)
        assert (other.targets_T[real:] == IGNORED).all()
        assert other.weights_T is not None
        assert not other.weights_T[real:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": {**SHAPE, "experts": 4, "experts_per_token": 2}}, "compile = 'on': how many tokens an expert gets"),
        ({"memory": MemorySettings(mlp_tile=16)}, "compile = 'on': .*run a layer in pieces.*set compile = 'off'"),
        ({"memory": MemorySettings(stream_chunk=16)}, "compile = 'on': .*run a layer in pieces"),
    ],
)
def test_what_cannot_be_compiled_is_refused_where_it_is_asked_for(
    packed: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(packed, tmp_path / "run", TrainConfig(compile="on", **{"shape": SHAPE, **changes}))
    with pytest.raises(UserError, match="compile = yes: must be auto, on or off"):
        TrainConfig(compile="yes")


def test_a_machine_without_a_compiler_is_told_what_is_missing(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    with pytest.raises(UserError, match=r"compile = 'on': torch cannot compile for cpu here .*g\+\+, or set compile"):
        train(packed, tmp_path / "run", TrainConfig(compile="on", shape=SHAPE))


@pytest.mark.wide  # a C++ compiler is at work for half a minute
def test_a_compiled_run_has_the_losses_of_a_plain_one_and_resumes_on_its_values(packed: Path, tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818 (it stands for a kill, not for an error)
        pass

    def stop(record: Any) -> None:
        if record.step == 3:
            raise Stopped

    settings: dict[str, Any] = {"shape": {**SHAPE, "layers": 1}, "steps": 4, "batch_tokens": 256, "checkpoint_every": 2}
    plain = TrainConfig(micro_batch_rows=4, compile="off", **settings)
    compiled = dataclasses.replace(plain, compile="on")
    train(packed, tmp_path / "plain", plain)
    train(packed, tmp_path / "compiled", compiled)
    with pytest.raises(Stopped):
        train(packed, tmp_path / "resumed", compiled, stop)
    assert train(packed, tmp_path / "resumed", compiled).resumed_from == 2

    def of(name: str, value: str) -> list[Any]:
        return [json.loads(line)[value] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    assert of("resumed", "loss") == of("compiled", "loss") == pytest.approx(of("plain", "loss"), rel=1e-5)
    assert (
        of("resumed", "grad_norm") == of("compiled", "grad_norm") == pytest.approx(of("plain", "grad_norm"), rel=1e-4)
    )
    assert max(of("plain", "padding_share")) == 0 < min(of("compiled", "padding_share"))
    runs = [json.loads((tmp_path / name / "train.json").read_text())["runs"] for name in ("compiled", "plain")]
    assert [run["compiler"] for run in runs] == ["inductor", None]
