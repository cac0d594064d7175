import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from seqmill.errors import UserError
from seqmill.packing.costs import (
    Architecture,
    CostModel,
    RowSizes,
    architecture_costs,
    fit_costs,
    non_negative_least_squares,
    read_row_sizes,
    read_timings,
)
from seqmill.storage import read_arrow

SMALL = Architecture(layers=2, dim=6, heads=4, kv_heads=2, head_dim=3, ffn_dim=10, vocab_size=11)


def sizes_of(rows: list[list[int]]) -> RowSizes:
    """Rows given by the lengths of their segments."""
    return RowSizes(
        np.arange(len(rows)),
        np.array([sum(row) for row in rows], np.int64),
        np.array([sum(length**2 for length in row) for row in rows], np.int64),
        np.array([len(row) for row in rows], np.int64),
    )


def random_rows(count: int, seed: int = 0) -> RowSizes:
    rng = np.random.default_rng(seed)
    return sizes_of([rng.integers(1, 4000, rng.integers(1, 40)).tolist() for _ in range(count)])


def counted_operations(shape: Architecture, segments: list[int]) -> int:
    """Multiplications and additions of a forward pass, one product of a matrix and a vector at a time."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = [(shape.dim, query), (shape.dim, key), (shape.dim, key), (query, shape.dim)]
    matrices += [(shape.dim, shape.ffn_dim), (shape.dim, shape.ffn_dim), (shape.ffn_dim, shape.dim)]
    total = 0
    for length in segments:
        for position in range(length):
            total += 2 * shape.dim * shape.vocab_size
            for _ in range(shape.layers):
                total += sum(2 * rows * columns for rows, columns in matrices)
                for _ in range(shape.heads):
                    total += (position + 1) * (2 * shape.head_dim + 2 * shape.head_dim)  # scores, weighted sum
    return total


def test_an_architecture_costs_three_times_its_forward_operations() -> None:
    rows = [[1], [7], [3, 4], [1] * 5, [20, 1, 2]]
    expected = [3 * counted_operations(SMALL, row) for row in rows]
    assert architecture_costs(SMALL).costs(sizes_of(rows)).tolist() == expected


def test_attention_equals_the_rest_at_the_length_that_the_literature_gives() -> None:
    """N / (layers * width) of arXiv 2502.21231's argument: about 12 widths of a GPT-like block, head left out."""
    gpt = Architecture(24, 2048, 16, 16, 128, 4 * 2048, vocab_size=1, ffn_matrices=2)
    model = architecture_costs(gpt)
    assert model.per_token / model.per_square == pytest.approx(12 * 2048, rel=1e-3)


def test_exact_timings_give_their_coefficients_back() -> None:
    rows = random_rows(40)
    true = CostModel(3e-12, 5e-8, 1e-6, 2e-4, "s")
    found, error = fit_costs(rows, true.costs(rows), per_exchanged_token=1e-9)
    for name in ("per_square", "per_token", "per_segment", "per_row"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-6)
    assert (found.unit, found.per_exchanged_token) == ("s", 1e-9)
    assert error.largest < 1e-9


def test_noisy_timings_predict_rows_that_were_not_timed() -> None:
    rows, unseen = random_rows(200), random_rows(200, seed=1)
    true = CostModel(3e-12, 5e-8, 0.0, 2e-4, "s")
    noise = np.random.default_rng(2).normal(1, 0.03, 200)
    found, error = fit_costs(rows, true.costs(rows) * noise)
    assert 0.01 < error.mean < 0.04
    assert error.mean < error.largest < 0.15
    assert np.abs(found.costs(unseen) / true.costs(unseen) - 1).max() < 0.06


def test_a_coefficient_that_would_be_negative_is_zero() -> None:
    rows = random_rows(50)
    seconds = 1e-6 * rows.n_tokens - 1e-14 * rows.sum_sq  # longer segments are cheaper: no cost model says so
    assert np.linalg.lstsq(np.stack([rows.sum_sq, rows.n_tokens], 1), seconds, rcond=None)[0].min() < 0
    model, _ = fit_costs(rows, seconds)
    assert model.per_square == 0
    assert model.per_token == pytest.approx(1e-6, rel=0.1)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 12), st.booleans())
def test_non_negative_least_squares_agrees_with_scipy(seed: int, columns: int, rows: int, is_equal: bool) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(0, 1, (rows, columns)) * 10.0 ** rng.integers(-3, 4, columns)
    if is_equal:
        matrix[:, -1] = matrix[:, 0]
    target = rng.normal(0, 1, rows)
    found = non_negative_least_squares(matrix, target)
    assert (found >= 0).all()
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(nnls(matrix, target)[1], rel=1e-7, abs=1e-9)


def test_the_sizes_of_a_packed_folder_are_those_of_its_rows(pack: Callable) -> None:
    folder = pack(np.random.default_rng(0).integers(0, 60, 90).tolist(), 32, shards=3).folder
    stored = [row for path in sorted(folder.glob("part-*.arrow")) for row in read_arrow(path).to_pylist()]
    found = read_row_sizes(folder)
    expected = sizes_of([row["seq_lengths"] for row in stored])
    assert len(found) == len(stored) > 50
    for name in ("row_id", "n_tokens", "sum_sq", "n_segments"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert len(read_row_sizes(pack([], 8, documents=[], shards=1).folder)) == 0


def test_timings_are_read_from_json_lines(tmp_path: Path) -> None:
    rows, path = random_rows(6), tmp_path / "timings.jsonl"
    table = zip(rows.n_tokens.tolist(), rows.sum_sq.tolist(), rows.n_segments.tolist(), strict=True)
    records = [{"n_tokens": t, "sum_sq": q, "n_segments": n, "seconds": 0.5} for t, q, n in table]
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    found, seconds = read_timings(path)
    assert found.sum_sq.tolist() == rows.sum_sq.tolist()
    assert seconds.tolist() == [0.5] * 6


@pytest.mark.parametrize("line", ["{", "[]", '{"n_tokens": 1, "sum_sq": 1, "seconds": 1}', '{"n_tokens": "many"}'])
def test_bad_timings_name_their_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "timings.jsonl"
    path.write_text('{"n_tokens": 1, "sum_sq": 1, "n_segments": 1, "seconds": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"line 2: .* is no JSON object with the numbers"):
        read_timings(path)


def test_impossible_models_are_refused(tmp_path: Path) -> None:
    rows = random_rows(5)
    with pytest.raises(UserError, match="layers = 0"):
        Architecture(0, 1, 1, 1, 1, 1, 1)
    with pytest.raises(UserError, match="per_token = -1"):
        CostModel(1, -1, 0, 0, "s")
    with pytest.raises(UserError, match="per_square = nan"):
        CostModel(float("nan"), 1, 0, 0, "s")
    with pytest.raises(UserError, match="zeros only"):
        CostModel(0, 0, 0, 0, "s", per_exchanged_token=1)
    with pytest.raises(UserError, match="not a positive number"):
        fit_costs(rows, [1, 1, 0, 1, 1])
    with pytest.raises(UserError, match="4 timings of 5 rows"):
        fit_costs(rows, [1, 1, 1, 1])
    with pytest.raises(UserError, match="cannot read timings"):
        read_timings(tmp_path / "nothing")
