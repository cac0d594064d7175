"""The check of isolation: it passes packed models on every backend, and finds what leaks."""

import dataclasses

import pytest
import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, check_isolation
from seqmill.models.attention import Segments

LENGTHS = [7, 1, 30, 7, 64, 2]


@pytest.mark.parametrize("backend", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize(
    "variants", [{}, {"window": 4}, {"window": 4, "sinks": 2, "full_every": 2, "nope_every": 2}], ids=str
)
def test_packed_documents_keep_apart(config: ModelConfig, backend: str, variants: dict[str, int]) -> None:
    model = Model(dataclasses.replace(config, **variants))
    for segments in (LENGTHS, Segments.of(LENGTHS), [16] * 4):
        found = check_isolation(model, segments, backend=backend)
        assert found.holds
        assert found.leaks == ()
        moved = found.moved_NN.clone()
        assert (moved.diagonal() > 0.01).all()
        assert not moved.fill_diagonal_(0).any()


def test_half_precision_is_checked_as_it_trains(model: Model) -> None:
    seen = []

    def hidden(ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        out = model(ids, positions, segments)
        seen.append(model.blocks[0].qkv(out).dtype)
        return out

    assert check_isolation(model, LENGTHS, dtype=torch.bfloat16, hidden=hidden).holds
    assert check_isolation(model, LENGTHS, dtype=torch.bfloat16).holds
    assert set(seen) == {torch.bfloat16}


def test_positions_that_restart_do_not_isolate_and_the_leaks_are_told(model: Model) -> None:
    def as_one_document(ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        return model(ids, positions, Segments.of([len(ids)]))

    found = check_isolation(model, LENGTHS, hidden=as_one_document)
    assert not found.holds
    later = {(changed, other) for other in range(len(LENGTHS)) for changed in range(other)}
    assert set(found.leaks) == later  # causal attention hands on what stands before


def test_what_is_no_number_is_a_leak(model: Model) -> None:
    calls = []

    def breaks(ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        out = model(ids, positions, segments)
        calls.append(1)
        if len(calls) == 2:  # the first document is changed
            out[-1, 0] = torch.nan
        return out

    assert check_isolation(model, LENGTHS, hidden=breaks).leaks == ((0, len(LENGTHS) - 1),)


def test_a_model_that_does_not_look_at_its_ids_proves_nothing(model: Model) -> None:
    def constant(ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        return torch.zeros(len(ids), model.config.dim)

    found = check_isolation(model, LENGTHS, hidden=constant)
    assert found.leaks == ()
    assert not found.holds


def test_one_document_has_none_to_keep_apart_from(model: Model) -> None:
    with pytest.raises(UserError, match=r"1 documents.*two documents or more"):
        check_isolation(model, [30])
    with pytest.raises(UserError, match="'varlen' needs CUDA"):
        check_isolation(model, [30, 2], backend="varlen")
