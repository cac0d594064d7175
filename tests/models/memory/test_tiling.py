"""A tiled function against the same function run at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqmill.models.memory.tiling import tiled
from tensor_memory import Watch, kept_for_gradients

WIDTH = 6


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 40), nn.SiLU(), nn.Linear(40, WIDTH)).to(dtype)


def tokens(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(1, 60))
def test_values_and_gradients_are_those_of_the_function_whatever_the_tile(count: int, tile: int) -> None:
    function, x = network(), tokens(count)
    weights = list(function.parameters())
    found, expected = tiled(function, x, weights, tile), function(x)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-14)
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), (x, *weights), allow_unused=True) for out in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.zeros_like(other) if one is None else one, other, atol=1e-13, rtol=1e-12)


def test_only_the_input_is_kept_and_only_a_tile_is_in_flight() -> None:
    function, x = network(), tokens(4096)
    with kept_for_gradients() as kept:
        out = tiled(function, x, list(function.parameters()), 64)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]
    with Watch() as watch:
        out.sum().backward()
    assert watch.peak < 3 * x.nbytes + 64 * 40 * 8 * 10  # a plain backward needs the inner width of all: 7 times x
    with Watch() as plain:
        function(x).sum().backward()
    assert plain.peak > 2 * watch.peak


def test_a_weight_gets_its_gradient_once_however_many_tiles() -> None:
    """What data parallel training waits for; hooks that would see the tiles' gradients as well are refused."""
    function, x = network(), tokens(50)
    calls: list[Tensor] = []
    for weight in function.parameters():
        weight.register_post_accumulate_grad_hook(calls.append)
    tiled(function, x, list(function.parameters()), 3).sum().backward()
    assert len(calls) == len({id(weight) for weight in calls}) == 4
    function[0].weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(ValueError, match=r"use Tensor\.register_post_accumulate_grad_hook"):
        tiled(function, x, list(function.parameters()), 3)


def test_weights_that_are_frozen_or_have_no_part_get_no_gradient() -> None:
    function, x = network(), tokens(20)
    first = function[0]
    first.weight.requires_grad_(False)
    stranger = nn.Parameter(torch.ones(3))
    tiled(function, x, [*function.parameters(), stranger], 7).sum().backward()
    assert first.weight.grad is None
    assert stranger.grad is None
    assert first.bias.grad is not None


def test_sums_over_many_tiles_do_not_lose_what_half_precision_would() -> None:
    """In bfloat16, 1 added to 256 is 256: a sum of a thousand tiles stands still there."""
    scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    x = torch.ones(1000, 1, dtype=torch.bfloat16, requires_grad=True)
    tiled(lambda tile: tile * scale, x, [scale], 1).float().sum().backward()
    assert scale.grad == torch.tensor(1000.0).bfloat16()


@pytest.mark.parametrize("where", ["forward only", "forward and backward"])
def test_the_way_back_is_under_the_autocast_of_the_way_there(where: str) -> None:
    function, x = network(torch.float32), tokens(50, torch.float32)
    weights = list(function.parameters())
    seen: list[torch.dtype] = []

    def watched(tile: Tensor) -> Tensor:
        out: Tensor = function(tile)
        seen.append(out.dtype)
        return tile + out

    with torch.autocast("cpu", torch.bfloat16):
        found, expected = tiled(watched, x, weights, 9), x + function(x)
        if where == "forward and backward":
            ours, theirs = (torch.autograd.grad(out.sum(), weights) for out in (found, expected))
    if where == "forward only":
        ours, theirs = (torch.autograd.grad(out.sum(), weights) for out in (found, expected))
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 12
    assert torch.equal(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
