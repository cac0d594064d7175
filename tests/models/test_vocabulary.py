import numpy as np
import pytest
import torch

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, extend_vocabulary
from seqmill.models.attention import Segments
from seqmill.tokenizers_ext.merging import MergeTable

BASE = 90


def table(base_vocab: int = BASE) -> MergeTable:
    """Ids 90 = (3, 4), 91 = (90, 5), 92 = (91, 91)."""
    return MergeTable(base_vocab, np.array([3, 90, 91]), np.array([4, 5, 91]), "none", "tokenizer")


def model_of(tied: bool = True) -> Model:
    return Model(ModelConfig(BASE, 32, 2, 4, 2, 8, 48, tied_head=tied), seed=1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_id_starts_as_the_mean_of_what_it_stands_for(tied: bool) -> None:
    model = model_of(tied)
    larger = extend_vocabulary(model, *table().expansions())
    assert larger.config.vocab_size == BASE + 3
    for rows, old in (
        (larger.embedding.weight, model.embedding.weight),
        (larger.head_weight, model.head_weight),
    ):
        torch.testing.assert_close(rows[:BASE], old[:BASE], rtol=0, atol=0)
        torch.testing.assert_close(rows[90], old[[3, 4]].mean(0))
        torch.testing.assert_close(rows[92], old[[3, 4, 5]].mean(0))
        assert not rows[BASE + 3 :].any()


def test_logits_of_the_ids_a_model_had_stay_as_they_are() -> None:
    model = model_of()
    larger = extend_vocabulary(model, *table().expansions())
    ids, segments = torch.tensor([3, 4, 5, 89]), Segments.of([4])
    old, new = (m.logits(m(ids, segments.positions(), segments)) for m in (model, larger))
    torch.testing.assert_close(new[:, :BASE], old)


@pytest.mark.parametrize("base_vocab", [BASE - 1, BASE + 1])
def test_a_table_of_another_vocabulary_is_refused(base_vocab: int) -> None:
    other = MergeTable(base_vocab, np.array([3]), np.array([4]), "none", "tokenizer")
    with pytest.raises(UserError, match="does not extend a vocabulary of 90"):
        extend_vocabulary(model_of(), *other.expansions())
