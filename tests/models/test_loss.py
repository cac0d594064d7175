import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)

from seqmill.models.loss import IGNORED, SummedLoss, cross_entropy_parts, cross_entropy_sum, summed_loss

TOKENS, DIM, VOCAB, PADDED = 37, 12, 50, 64


def example(ignored_share: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, generator=generator, requires_grad=True)
    weight = torch.randn(PADDED, DIM, generator=generator, requires_grad=True)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    targets[torch.rand(TOKENS, generator=generator) < ignored_share] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, TOKENS, 1000])
def test_the_sum_and_its_gradients_are_those_of_torch_whatever_the_chunk(chunk_tokens: int | None) -> None:
    hidden, weight, targets = example()
    assert 0 < (targets == IGNORED).sum() < TOKENS
    found = cross_entropy_sum(hidden, weight, targets, VOCAB, chunk_tokens)
    expected = F.cross_entropy((hidden @ weight[:VOCAB].T), targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    parts = (hidden, weight)
    ours, theirs = (torch.autograd.grad(3 * loss, parts) for loss in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
def test_tokens_can_have_weights(chunk_tokens: int) -> None:
    hidden, weight, targets = example()
    of_tokens = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1))
    kinds = torch.arange(TOKENS) % 3
    found, parts = cross_entropy_parts(hidden, weight, targets, VOCAB, kinds, chunk_tokens, of_tokens)
    losses = F.cross_entropy((hidden @ weight[:VOCAB].T), targets, ignore_index=IGNORED, reduction="none")
    expected = (losses * of_tokens).sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts, torch.stack([losses[kinds == kind].sum() for kind in range(3)]).detach())
    ours, theirs = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_weights_of_one_are_no_weights_to_the_bit() -> None:
    hidden, weight, targets = example()
    plain = cross_entropy_sum(hidden, weight, targets, VOCAB, 7)
    weighted, _ = cross_entropy_parts(hidden, weight, targets, VOCAB, None, 7, torch.ones(TOKENS))
    assert plain == weighted
    ours, theirs = (torch.autograd.grad(loss, (hidden, weight)) for loss in (weighted, plain))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_padding_ids_get_no_probability_and_no_gradient() -> None:
    hidden, weight, targets = example()
    with torch.no_grad():
        weight[VOCAB:] = 1e4  # would win every softmax
    loss = cross_entropy_sum(hidden, weight, targets, VOCAB)
    loss.backward()
    assert weight.grad is not None
    assert loss.isfinite()
    assert weight.grad[VOCAB:].abs().max() == 0
    assert weight.grad[:VOCAB].abs().max() > 0


@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_z_loss_and_its_gradients_are_those_of_the_formula(chunk_tokens: int, is_weighted: bool) -> None:
    hidden, weight, targets = example()
    of_tokens = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1)) if is_weighted else None
    found = summed_loss(hidden, weight, targets, VOCAB, None, chunk_tokens, of_tokens, z_coefficient=0.03)
    logits = hidden @ weight[:VOCAB].T
    scale = (targets != IGNORED) * (1.0 if of_tokens is None else of_tokens)
    cross_entropy = (F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none") * scale).sum()
    z_loss = 0.03 * (logits.logsumexp(1).square() * scale).sum()
    assert z_loss > 0.01 * cross_entropy
    torch.testing.assert_close(found.cross_entropy, cross_entropy.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.z_loss, z_loss.detach(), rtol=1e-6, atol=0)
    expected = cross_entropy + z_loss
    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=0)
    ours, theirs = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (found.total, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_z_loss_leaves_the_reported_cross_entropy_as_it_is_and_lets_no_gradient_through_it() -> None:
    hidden, weight, targets = example()
    kinds = torch.arange(TOKENS) % 3
    plain = summed_loss(hidden, weight, targets, VOCAB, kinds, 7)
    with_z = summed_loss(hidden, weight, targets, VOCAB, kinds, 7, z_coefficient=0.03)
    assert (
        plain.total
        == plain.cross_entropy
        == with_z.cross_entropy
        == cross_entropy_sum(hidden, weight, targets, VOCAB, 7)
    )
    assert torch.equal(plain.parts, with_z.parts)
    assert plain.z_loss == 0 < with_z.z_loss
    assert with_z.total.requires_grad
    assert not any(one.requires_grad for one in with_z[1:])


@pytest.mark.parametrize("tokens", [TOKENS, 0])
@pytest.mark.parametrize("z_coefficient", [0.0, 1e-4])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_tokens_without_any_target_give_zero_and_no_nan(tokens: int, z_coefficient: float, is_weighted: bool) -> None:
    hidden, weight, _ = example()
    weights = torch.ones(tokens) if is_weighted else None
    targets = torch.full((tokens,), IGNORED)
    found = summed_loss(hidden[:tokens], weight, targets, VOCAB, targets == 0, 7, weights, z_coefficient)
    found.total.backward()
    assert found == SummedLoss(*(torch.zeros(()),) * 3, found.parts)
    assert not found.parts.any()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_half_precision_keeps_the_weights_gradient_in_single_precision() -> None:
    hidden, weight, targets = example()
    exact = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets, VOCAB), weight)[0]
    half = torch.autograd.grad(cross_entropy_sum(hidden.bfloat16(), weight, targets, VOCAB), weight)[0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)


def test_no_gradient_is_taken_where_none_is_wanted() -> None:
    hidden, weight, targets = example()
    with torch.no_grad():
        loss = cross_entropy_sum(hidden, weight, targets, VOCAB, 7)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, cross_entropy_sum(hidden, weight, targets, VOCAB).detach())
