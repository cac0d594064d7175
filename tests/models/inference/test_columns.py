"""A column of ids against the same sequences one by one."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, embed, score
from seqmill.models.inference.columns import read_column


def test_a_column_gives_each_row_its_scores_and_its_embedding(decoder: Model, sequences: list[np.ndarray]) -> None:
    rows = [None, [], *map(list, sequences[:4]), [], *map(list, sequences[4:]), None]
    column = pa.array([[1, 2], *rows], pa.list_(pa.uint16()))[1:]  # a slice: offsets do not begin at 0
    batch = read_column(decoder, column, "mean", most_tokens=90)
    full = [place for place, row in enumerate(rows) if row]
    assert batch.schema.types == [
        pa.uint32(), pa.float64(), pa.list_(pa.float32()), pa.list_(pa.float32(), decoder.config.dim)
    ]  # fmt: skip
    assert batch["tokens"].to_pylist() == [len(row) - 1 if row else 0 for row in rows]
    expected = score(decoder, sequences, prefill_tokens=90)
    assert [batch["token_log_probs"].to_pylist()[place] for place in full] == [each.tolist() for each in expected]
    sums = [math.fsum(each.tolist()) if len(each) else None for each in expected]
    assert batch["log_prob"].take(full).to_pylist() == pytest.approx(sums, rel=1e-12)
    assert batch["log_prob"].null_count == len(rows) - sum(len(each) > 0 for each in expected)
    vectors = embed(decoder, sequences, "mean", prefill_tokens=90)
    assert batch["embedding"].take(full).to_pylist() == vectors.tolist()
    assert [place for place, row in enumerate(batch["embedding"].to_pylist()) if row is not None] == full


def test_an_id_before_all_rows_is_known_and_the_rest_is_predicted(decoder: Model, sequences: list[np.ndarray]) -> None:
    rows = [None, [], *map(list, sequences), []]
    column = pa.array([[1, 2], *rows], pa.list_(pa.uint16()))[1:]
    begun = pa.array([[5, *row] if row else row for row in rows], pa.list_(pa.uint16()))
    batch = read_column(decoder, column, "last", most_tokens=90, start=5)
    assert batch.equals(read_column(decoder, begun, "last", most_tokens=90))
    assert batch["tokens"].to_pylist() == [len(row) if row else 0 for row in rows]
    assert read_column(decoder, begun, "last", most_tokens=90, start=5).equals(batch)  # it is there already
    with pytest.raises(UserError, match=r"start = 100, but the model's vocabulary is 0 \.\. 99"):
        read_column(decoder, column, start=100)


def test_a_column_of_large_lists_is_read_alike_and_no_rows_give_no_rows(decoder: Model) -> None:
    rows = [[1, 2, 3], [4, 5]]
    narrow, wide = (
        read_column(decoder, pa.array(rows, kind)) for kind in (pa.list_(pa.uint32()), pa.large_list(pa.int64()))
    )
    assert narrow.equals(wide)
    assert read_column(decoder, pa.array([], pa.list_(pa.uint16())), "last").num_rows == 0


def test_an_unknown_id_is_refused_by_the_name_of_its_row(decoder: Model) -> None:
    column = pa.array([[1, 2], [], [3, 777, 4]])
    with pytest.raises(UserError, match=r"row 2 holds the id 777, but the model's vocabulary is 0 \.\. 99"):
        read_column(decoder, column)
    with pytest.raises(UserError, match=r"^document c holds"):
        read_column(decoder, column, name_of=lambda row: f"document {'abc'[row]}")


@pytest.mark.parametrize("column", [pa.array(["a"]), pa.array([[1, None]]), pa.array([[1.5]]), pa.array([3])], ids=str)
def test_a_column_of_anything_but_whole_ids_is_refused(decoder: Model, column: pa.Array) -> None:
    with pytest.raises(UserError, match=r"cannot be read: lists of integers are needed"):
        read_column(decoder, column)


def test_weights_that_are_no_numbers_are_refused_by_the_row_they_spoil() -> None:
    model = Model(ModelConfig(vocab_size=100, dim=32, layers=1, heads=4, kv_heads=2, head_dim=8, ffn_dim=48), seed=1)
    with torch.no_grad():
        model.embedding.weight[42, 0] = torch.nan
    with pytest.raises(UserError, match="log-probability of row 1 is no finite number"):
        read_column(model, pa.array([[1], [2, 3], [4]]))
