import math

import pytest
import torch

from seqmill.models import Model, ModelConfig
from seqmill.models.training.optim import OPTIMIZERS, Optimizer, learning_rate, orthogonalise


def test_the_rate_warms_up_in_a_line_and_falls_in_half_a_cosine() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, steps=110, warmup_steps=10, peak=2.0, min_ratio=0.1)

    assert rate(1) == pytest.approx(0.2)
    assert rate(5) == pytest.approx(1.0)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.1)  # half way: the mean of 2.0 and 0.2
    assert rate(35) == pytest.approx(0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(110) == pytest.approx(0.2)
    falling = [rate(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_without_warm_up_the_first_update_is_already_on_the_cosine() -> None:
    assert learning_rate(1, steps=1, warmup_steps=0, peak=1.0, min_ratio=0.25) == pytest.approx(0.25)
    assert learning_rate(1, steps=100, warmup_steps=0, peak=1.0, min_ratio=0.0) > 0.999
    assert learning_rate(3, steps=3, warmup_steps=3, peak=1.0, min_ratio=0.0) == 1.0


def test_a_straight_line_goes_from_the_peak_to_the_least_rate() -> None:
    rates = [learning_rate(step, 110, 10, 2.0, 0.1, "linear") for step in (10, 60, 110)]
    assert rates == pytest.approx([2.0, 1.1, 0.2])


def test_warm_up_stable_decay_stays_at_the_peak_until_the_last_part() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, 110, 10, 2.0, 0.1, "wsd", decay_share=0.25)

    assert {rate(step) for step in range(10, 86)} == {2.0}
    assert [rate(step) for step in (85, 97.5, 110)] == pytest.approx([2.0, 1.1, 0.2])  # type: ignore[arg-type]


def with_gradients(model: Model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_matrices_decay_and_scales_do_not(config: ModelConfig, kind: str) -> None:
    model = Model(config)
    optimizer = Optimizer(model, kind, (0.9, 0.95), weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0  # 1 - rate * decay; a zero gradient adds nothing
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
        assert parameter.grad is None


def test_an_update_is_adamw_as_published(config: ModelConfig) -> None:
    model = Model(config)
    optimizer = Optimizer(model, "adamw", (0.9, 0.95), weight_decay=0.1)
    weight = model.blocks[0].get_parameter("down.weight")
    expected, mean, square = weight.detach().double().clone(), 0.0, 0.0
    for step, rate in enumerate((0.01, 0.02, 0.005), start=1):
        with_gradients(model, step)
        assert weight.grad is not None
        gradient = weight.grad.double()
        optimizer.step(rate)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        corrected = (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
        expected = expected * (1 - rate * 0.1) - rate * corrected
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 24), (40, 12), (12, 40)])
def test_orthogonalised_matrices_keep_their_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 5
    found = orthogonalise(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    in_directions = left.T @ found @ right.T
    assert (in_directions - in_directions.diag().diag()).abs().max() < 1e-4
    assert orthogonalise(torch.zeros(shape)).abs().max() == 0


def test_muon_takes_the_steps_of_torch_with_each_projection_by_itself(config: ModelConfig) -> None:
    model = Model(config)
    optimizer = Optimizer(model, "muon", (0.9, 0.95), weight_decay=0.1)
    block = model.blocks[1]
    width, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    pieces = [
        (block.get_parameter("qkv.weight"), [slice(0, width), slice(width, width + keys), slice(width + keys, None)]),
        (block.get_parameter("gate_up.weight"), [slice(0, config.ffn_dim), slice(config.ffn_dim, None)]),
        (block.get_parameter("down.weight"), [slice(None)]),
    ]
    places = [(weight, rows) for weight, parts in pieces for rows in parts]
    before = [weight.detach()[rows].clone() for weight, rows in places]
    theirs = [torch.nn.Parameter(value.clone()) for value in before]
    reference = torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step, rate in enumerate((0.02, 0.01), start=1):
        with_gradients(model, step)
        for value, (weight, rows) in zip(theirs, places, strict=True):
            assert weight.grad is not None
            value.grad = weight.grad[rows].clone()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        optimizer.step(rate)
    for start, (weight, rows), expected in zip(before, places, theirs, strict=True):
        moved, wanted = (weight.detach()[rows] - start).flatten(), (expected.detach() - start).flatten()
        assert torch.cosine_similarity(moved, wanted, dim=0) > 0.999  # they multiply in bfloat16
        assert moved.norm() == pytest.approx(float(wanted.norm()), rel=0.01)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_to_the_bit(config: ModelConfig, kind: str) -> None:
    straight, stopped = Model(config), Model(config)
    optimizer = Optimizer(straight, kind, (0.9, 0.95), 0.1)
    for step in (1, 2):
        with_gradients(straight, step)
        optimizer.step(0.01)
    stopped.load_state_dict({name: tensor.clone() for name, tensor in straight.state_dict().items()})
    again = Optimizer(stopped, kind, (0.9, 0.95), 0.1)
    again.restore({name: tensor.clone() for name, tensor in optimizer.tensors().items()}, step=2)
    for model, one in ((straight, optimizer), (stopped, again)):
        with_gradients(model, 3)
        one.step(0.02)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), stopped.parameters(), strict=True))
    assert optimizer.tensors().keys() == again.tensors().keys()
