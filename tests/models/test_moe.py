"""Experts against loops over tokens, transformers' blocks, and one update against any cut of it."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, generate, moe
from seqmill.models.attention import Segments
from seqmill.models.huggingface import export_huggingface
from seqmill.models.integer_export import integer_weights
from seqmill.models.loss import cross_entropy_sum
from seqmill.models.moe import (
    MixtureOfExperts,
    balance_loss,
    count_choices,
    expert_counts,
    load_imbalance,
    record_routing,
    router_z_loss,
)
from seqmill.models.training.gradients import MicroBatch, split_batch
from seqmill.models.training.optim import OPTIMIZERS, Optimizer, orthogonalise

EXPERTS, CHOSEN = 6, 2
BALANCE, Z = 0.5, 0.1  # weights large enough to show in the gradients
Weights = dict[str, Tensor]


@pytest.fixture
def config(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, ffn_dim=24, experts=EXPERTS, experts_per_token=CHOSEN)


def layer_of(config: ModelConfig, dtype: torch.dtype = torch.float64) -> MixtureOfExperts:
    layer = MixtureOfExperts(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return layer.to(dtype)


def rows(tokens: int, config: ModelConfig, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tokens, config.dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def token_by_token(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    """The definition: one token and one of its experts after the other."""
    out = []
    for token in x:
        probabilities = (layer.router.weight @ token).softmax(0)
        best = sorted(range(EXPERTS), key=lambda expert: -probabilities[expert].item())[:CHOSEN]
        total = torch.zeros_like(token)
        for expert in best:
            gate, up = (layer.gate_up.weight[expert] @ token).chunk(2)
            weight = probabilities[expert] / sum(probabilities[other] for other in best)
            total = total + weight * (layer.down.weight[expert] @ (F.silu(gate) * up))
        out.append(total)
    return torch.stack(out)


@settings(max_examples=20)
@given(tokens=st.integers(1, 40), favoured=st.sampled_from([None, 0, 5]))
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens_and_experts(tokens: int, favoured: int | None) -> None:
    config = ModelConfig(100, 32, 2, 4, 2, 8, ffn_dim=24, experts=EXPERTS, experts_per_token=CHOSEN)
    layer, x = layer_of(config), rows(tokens, config)
    if favoured is not None:  # all tokens choose one expert, and none is dropped
        x = x.detach().abs().requires_grad_()
        layer.router.weight.data[favoured] = 3.0
    found, expected = layer(x), token_by_token(layer, x)
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_no_token_at_all_is_no_trouble(config: ModelConfig) -> None:
    layer = layer_of(config)
    out = layer(rows(0, config))
    assert out.shape == (0, config.dim)
    out.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())


def test_one_kernel_for_all_experts_gives_what_one_product_after_the_other_does() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([3, 0, 9, 4])
    x, weight = torch.randn(16, 8, generator=generator), torch.randn(4, 24, 8, generator=generator)
    parts = (x.requires_grad_(), weight.requires_grad_())
    found, expected = (multiply(*parts, counts) for multiply in (moe._grouped, moe._one_by_one))
    torch.testing.assert_close(found, expected)
    slopes = torch.randn(found.shape, generator=generator)
    for one, other in zip(
        torch.autograd.grad(found, parts, slopes), torch.autograd.grad(expected, parts, slopes), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.fixture
def batch(config: ModelConfig) -> dict[str, Any]:
    lengths = (9, 1, 30, 2, 17, 1, 23)
    segments = Segments.of(lengths)
    # documents differ in the ids they use, so that they choose different experts
    ids = [torch.arange(length) * 3 % 17 + 14 * document for document, length in enumerate(lengths)]
    targets = torch.cat(ids).roll(-1)
    targets[segments.cu_seqlens[1:].long() - 1] = -100
    return {
        "input_ids": torch.cat(ids),
        "position_ids": segments.positions(),
        "targets": targets,
        "cu_seqlens": segments.cu_seqlens,
        "global_loss_tokens": int((targets != -100).sum()),
    }


def micro_batches(batch: dict[str, Any], tokens: int) -> list[MicroBatch]:
    return list(split_batch(batch, tokens, torch.device("cpu")))


def forward_with(model: Model) -> Callable[[MicroBatch], Tensor]:
    return lambda part: model(part.input_ids_T, part.position_ids_T, part.segments)


def update(model: Model, parts: Sequence[MicroBatch], targets: int, with_pass_a: bool) -> tuple[float, Weights]:
    """The loss and gradients of an update, as a trainer finds them."""
    forward = forward_with(model)
    frozen = expert_counts(model, parts, forward) if with_pass_a else None
    total = 0.0
    for part in parts:
        with record_routing(model) as routings:
            hidden = forward(part)
        counts = count_choices(routings) if frozen is None else frozen
        summed = cross_entropy_sum(hidden, model.head_weight, part.targets_T, model.config.vocab_size)
        loss = summed / targets + BALANCE * balance_loss(routings, counts) + Z * router_z_loss(routings, counts)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(grads) == len(list(model.parameters()))
    model.zero_grad()
    return total, grads


def largest_difference(found: Weights, expected: Weights) -> float:
    return max(float((found[name] - x).abs().max() / x.abs().max()) for name, x in expected.items())


@pytest.mark.parametrize("tokens", [1, 20, 35, 60])
def test_the_update_is_the_same_however_it_is_cut(config: ModelConfig, batch: dict[str, Any], tokens: int) -> None:
    model, targets = Model(config, seed=1), batch["global_loss_tokens"]
    whole, expected = update(model, micro_batches(batch, 10**6), targets, with_pass_a=False)
    parts = micro_batches(batch, tokens)
    assert len(parts) > 1
    cut, found = update(model, parts, targets, with_pass_a=True)
    assert cut == pytest.approx(whole, rel=1e-6)
    assert largest_difference(found, expected) < 3e-6
    _, of_each_part = update(model, parts, targets, with_pass_a=False)  # the usual mistake
    assert largest_difference(of_each_part, expected) > 1e-3


def test_the_losses_are_their_definitions(config: ModelConfig, batch: dict[str, Any]) -> None:
    model = Model(config, seed=1)
    (part,) = micro_batches(batch, 10**6)
    with record_routing(model) as routings:
        forward_with(model)(part)
    counts = count_choices(routings)
    balance, squares = torch.zeros(()), torch.zeros(())
    for routing, of_layer in zip(routings, counts.tolist(), strict=True):
        tokens = len(routing.chosen_TC)
        for expert in range(EXPERTS):
            chosen = sum(expert in of_token for of_token in routing.chosen_TC.tolist())
            assert of_layer[expert] == chosen
            share = chosen / (tokens * CHOSEN)
            balance = balance + EXPERTS * share * routing.probabilities_TN[:, expert].mean()
        squares = squares + sum(logits.exp().sum().log() ** 2 for logits in routing.logits_TN) / tokens
    torch.testing.assert_close(balance_loss(routings, counts), balance)
    torch.testing.assert_close(router_z_loss(routings, counts), squares)
    assert len(routings) == config.layers
    assert balance > config.layers  # it is least, 1 a layer, where all experts are used alike


def test_the_balancing_loss_makes_experts_be_used_alike(config: ModelConfig, batch: dict[str, Any]) -> None:
    layer = layer_of(config, torch.float32)
    x = rows(200, config, torch.float32).detach() + 0.4  # towards some experts more than others
    loads = []
    for _ in range(40):
        with record_routing(layer) as routings:
            layer(x)
        counts = count_choices(routings)
        loads += load_imbalance(counts)
        (slope,) = torch.autograd.grad(balance_loss(routings, counts), [layer.router.weight])
        layer.router.weight.data -= 0.3 * slope
    assert loads[0] > 1.5
    assert loads[-1] < 1.2


def test_a_layer_that_works_on_some_tokens_at_a_time_is_counted_and_balanced_as_one(config: ModelConfig) -> None:
    layers = torch.nn.ModuleList([layer_of(config), layer_of(config)])
    x = rows(30, config)
    found = []
    for tokens in (30, 8):
        with record_routing(layers) as routings:
            for layer in layers:
                for tile in x.split(tokens):
                    layer(tile)
        counts = count_choices(routings)
        found.append((counts, balance_loss(routings, counts)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].shape == (2, EXPERTS)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_load_is_the_busiest_expert_over_the_mean() -> None:
    counts = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 4, 4, 2]])
    assert load_imbalance(counts) == [1.0, 4.0, 2.0]


def test_a_routing_without_gradient_is_refused_where_one_is_wanted(config: ModelConfig, batch: dict[str, Any]) -> None:
    model = Model(config, seed=1)
    (part,) = micro_batches(batch, 10**6)
    with record_routing(model) as routings, torch.no_grad():
        forward_with(model)(part)
    with pytest.raises(UserError, match="recorded without gradients"):
        balance_loss(routings, count_choices(routings))
    with torch.no_grad():
        assert balance_loss(routings, count_choices(routings)) > 0


def test_recomputing_a_layer_records_nothing_twice_and_gives_the_same_gradients(
    config: ModelConfig, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(config, seed=1)
    parts, targets = micro_batches(batch, 10**6), batch["global_loss_tokens"]
    _, expected = update(model, parts, targets, with_pass_a=False)
    for block in model.blocks:
        monkeypatch.setattr(block, "forward", partial(checkpoint, block.forward, use_reentrant=False))
    _, found = update(model, parts, targets, with_pass_a=False)
    assert largest_difference(found, expected) < 1e-6


def test_another_document_moves_a_token_by_rounding_alone(config: ModelConfig, batch: dict[str, Any]) -> None:
    model = Model(config, seed=1).requires_grad_(False)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][10:40] = 99
    before, after = (forward_with(model)(micro_batches(x, 10**6)[0]) for x in (batch, changed))
    others = torch.ones(len(before), dtype=torch.bool)
    others[10:40] = False
    torch.testing.assert_close(before[others], after[others], rtol=1e-5, atol=1e-5)
    assert (before - after)[~others].abs().max() > 0.1


def test_products_in_bfloat16_route_as_float32_does_and_come_close(config: ModelConfig) -> None:
    layer, x = layer_of(config, torch.float32), rows(50, config, torch.float32)
    exact = layer(x)
    with record_routing(layer) as routings, torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert routings[0].probabilities_TN.dtype == torch.float32
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)


def test_generation_sends_every_token_to_the_experts_it_has_in_a_whole_text(config: ModelConfig) -> None:
    model = Model(config, seed=1).requires_grad_(False)
    prompt = [5, 9, 2, 70]
    (generated,) = generate(model, [prompt], max_new_tokens=12)
    text = torch.tensor([*prompt, *generated.tokens])
    logits = model.logits(model(text, torch.arange(len(text)), Segments.of([len(text)])))
    assert logits[3:-1].argmax(1).tolist() == list(generated.tokens)


def test_counted_parameters_are_those_of_the_model_and_of_one_token(config: ModelConfig) -> None:
    assert config.parameters == sum(parameter.numel() for parameter in Model(config).parameters())
    one_expert = 3 * config.dim * config.ffn_dim
    assert config.parameters - config.active_parameters == config.layers * (EXPERTS - CHOSEN) * one_expert
    dense = dataclasses.replace(config, experts=0, experts_per_token=0)
    assert dense.active_parameters == dense.parameters


def test_a_config_with_experts_survives_json_and_one_without_has_the_json_it_always_had(config: ModelConfig) -> None:
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json())), "here") == config
    dense = dataclasses.replace(config, experts=0, experts_per_token=0)
    assert not {"experts", "experts_per_token"} & set(dense.to_json())


@pytest.mark.parametrize(("experts", "chosen"), [(4, 0), (4, 1), (4, 5), (0, 2), (-1, 2)])
def test_impossible_numbers_of_experts_are_refused(config: ModelConfig, experts: int, chosen: int) -> None:
    with pytest.raises(UserError, match=rf"experts = {experts}, experts_per_token = {chosen}: .*at least 2"):
        dataclasses.replace(config, experts=experts, experts_per_token=chosen)


def test_experts_begin_at_the_scale_of_dense_layers(config: ModelConfig) -> None:
    experts = Model(config).blocks[0].experts
    assert isinstance(experts, MixtureOfExperts)
    assert experts.gate_up.weight.std().item() == pytest.approx(config.dim**-0.5, rel=0.05)
    assert experts.down.weight.std().item() == pytest.approx((config.ffn_dim * 2 * config.layers) ** -0.5, rel=0.05)


def test_muon_makes_the_matrices_of_every_expert_orthogonal_by_themselves(config: ModelConfig) -> None:
    model = Model(config)
    optimizer = Optimizer(model, "muon", (0.9, 0.95), weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.ndim))
    experts = model.blocks[0].experts
    assert isinstance(experts, MixtureOfExperts)
    weights = [experts.gate_up.weight, experts.down.weight]
    before = [weight.detach().clone() for weight in weights]
    grads = [weight.grad.clone() for weight in weights if weight.grad is not None]
    optimizer.step(0.1)
    for weight, start, grad in zip(weights, before, grads, strict=True):
        for moved, of_expert in zip(weight.detach() - start, grad, strict=True):
            halves = 2 if weight is weights[0] else 1  # gate and up
            for part, gradient in zip(moved.chunk(halves), of_expert.chunk(halves), strict=True):
                expected = -0.1 * 0.2 * max(part.shape) ** 0.5 * orthogonalise(gradient)
                torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_experts_decay_like_matrices(config: ModelConfig, kind: str) -> None:
    model = Model(config)
    optimizer = Optimizer(model, kind, (0.9, 0.95), weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step(0.1)
    for name in ("router", "gate_up", "down"):
        name = f"blocks.1.experts.{name}.weight"
        torch.testing.assert_close(model.get_parameter(name).detach(), before[name] * 0.95)


def test_models_with_experts_have_no_form_elsewhere_yet(config: ModelConfig, tmp_path: Path) -> None:
    model = Model(config)
    with pytest.raises(UserError, match=r"has no {'experts': 6, 'experts_per_token': 2}"):
        export_huggingface(model, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    with pytest.raises(UserError, match=r"variants {'experts': 6.*no integer form"):
        integer_weights(model)
