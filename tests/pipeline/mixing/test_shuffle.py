import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.pipeline.mixing.keys import choice_keys, order_keys
from seqmill.pipeline.mixing.shuffle import sorted_rows

from . import oracle
from .conftest import Mixed, document

ids = st.lists(st.integers(0, 2**64 - 1), max_size=20)


@given(ids, st.integers(0, 2**70), st.integers(0, 2**32 - 1))
def test_keys_are_those_of_plain_integers(doc_ids: list[int], seed: int, copy: int) -> None:
    array = np.array(doc_ids, np.uint64)
    assert choice_keys(array, seed, "x").tolist() == [oracle.choice_key(d, seed, "x") for d in doc_ids]
    assert order_keys(array, copy, seed).tolist() == [oracle.order_key(d, copy, seed) for d in doc_ids]


def test_ties_of_keys_go_by_document_and_copy() -> None:
    keys = np.array([5, 3, 5, 5, 3], np.uint64)
    doc_ids = np.array([2, 9, 1, 2, 8], np.uint64)
    copies = np.array([1, 0, 4, 0, 0], np.uint32)
    rows = list(zip(keys, doc_ids, copies, strict=True))
    assert [rows[row] for row in sorted_rows(keys, doc_ids, copies)] == sorted(rows)


def long_documents(count: int, characters: int) -> list[dict]:
    draw = random.Random(count)
    return [
        document(k << 3, "é" * draw.randrange(characters), draw.choice(["web", "books", "code"]), score=float(k))
        for k in range(count)
    ]


def test_the_order_is_the_sort_by_hash_for_every_budget_and_every_cut_into_parts(
    documents_folder: Callable[..., Path], run_mix: Callable[..., Mixed]
) -> None:
    rows = long_documents(250, 9_000)  # 2.2 MB
    epochs = {"web": 2.3, "books": 0.5}
    copies = oracle.copies_by_epochs({row["doc_id"]: row["source"] for row in rows}, {"web": "2.3", "books": "0.5"}, 9)
    expected = sorted(
        ((doc_id, copy) for doc_id, count in copies.items() for copy in range(count)),
        key=lambda place: oracle.order_key(*place, 9),
    )
    content = {row["doc_id"]: row for row in rows}
    parts = []
    for memory_mb, per_part, per_batch in ((1, 1000, 300), (1, 40, 7), (3, 150, 1), (1024, 300, 64)):
        folder = documents_folder(rows, f"in-{memory_mb}-{per_part}", per_part, per_batch)
        mixed = run_mix(folder, epochs=epochs, seed=9, memory_mb=memory_mb)
        assert mixed.order() == expected
        assert all(row == {**content[row["doc_id"]], "copy": row["copy"]} for row in mixed.rows)
        assert max(mixed.part_sizes) <= memory_mb * 2**20 / 3 * 1.05
        parts.append(len(mixed.part_sizes))
    assert parts[0] == parts[1] > parts[2] > parts[3] == 1


def test_another_seed_gives_another_order_and_another_choice(
    documents_folder: Callable[..., Path], run_mix: Callable[..., Mixed]
) -> None:
    folder = documents_folder([document(k) for k in range(100)])
    one, other = (run_mix(folder, epochs={"web": 0.5}, seed=seed) for seed in (1, 2))
    assert one.copies() != other.copies()
    assert len(one.rows) == len(other.rows) == 50
    whole = [run_mix(folder, seed=seed).order() for seed in (1, 2)]
    assert whole[0] != whole[1]
    assert sorted(whole[0]) == sorted(whole[1])


def test_without_a_shuffle_the_input_order_stays_pass_by_pass(
    documents_folder: Callable[..., Path], run_mix: Callable[..., Mixed]
) -> None:
    rows = [document(k, source="ab"[k % 2]) for k in range(20)]
    folder = documents_folder(rows, per_part=6)
    mixed = run_mix(folder, epochs={"a": 1.5, "b": 2}, shuffle=False)
    copies = oracle.copies_by_epochs({row["doc_id"]: row["source"] for row in rows}, {"a": "1.5", "b": "2"}, 0)
    assert mixed.order() == [(k, copy) for copy in range(2) for k in range(20) if copies[k] > copy]
    plain = run_mix(folder, shuffle=False)
    assert plain.rows == rows


def test_a_document_larger_than_the_budget_is_refused_with_the_numbers(
    documents_folder: Callable[..., Path], run_mix: Callable[..., Mixed]
) -> None:
    folder = documents_folder([document(0), document(1, "x" * 400_000)])
    with pytest.raises(UserError, match=r"memory_mb = 1: the largest document takes 4000\d\d bytes, .* 349525 "):
        run_mix(folder, memory_mb=1)
    assert len(run_mix(folder, memory_mb=2).rows) == 2
    assert len(run_mix(folder, memory_mb=1, shuffle=False).rows) == 2


def test_a_plan_that_needs_more_memory_than_allowed_is_refused_with_the_numbers(
    documents_folder: Callable[..., Path], run_mix: Callable[..., Mixed]
) -> None:
    folder = documents_folder([document(k, "") for k in range(20_000)], per_part=20_000, per_batch=20_000)
    with pytest.raises(UserError, match=r"20000 documents .* needs 2 MiB"):
        run_mix(folder, memory_mb=1)
