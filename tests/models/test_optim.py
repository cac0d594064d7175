import math

import pytest
import torch

from seqmill.models import Model, ModelConfig
from seqmill.models.optim import adamw, learning_rate, set_learning_rate


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


def test_matrices_decay_and_scales_do_not(config: ModelConfig) -> None:
    model = Model(config)
    optimizer = adamw(model, (0.9, 0.95), weight_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0  # 1 - rate * decay; a zero gradient adds nothing
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_an_update_is_adamw_as_published(config: ModelConfig) -> None:
    model = Model(config)
    optimizer = adamw(model, (0.9, 0.95), weight_decay=0.1)
    weight = model.blocks[0].get_parameter("down.weight")
    expected, mean, square = weight.detach().double().clone(), 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    for step, rate in enumerate((0.01, 0.02, 0.005), start=1):
        gradient = torch.randn(weight.shape, generator=generator)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = gradient.clone()
        set_learning_rate(optimizer, rate)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient.double()
        square = 0.95 * square + 0.05 * gradient.double() ** 2
        corrected = (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
        expected = expected * (1 - rate * 0.1) - rate * corrected
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
