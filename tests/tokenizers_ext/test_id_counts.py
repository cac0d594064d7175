from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqmill.tokenizers_ext.id_counts import COUNTS, IdCounts

GROUPS, VOCAB_SIZE = 4, 10
DOCUMENTS = st.lists(
    st.tuples(st.integers(0, GROUPS - 1), st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=8)), max_size=6
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(DOCUMENTS, max_size=4), pending=st.sampled_from([0, 5, 1000]))
def test_counts_equal_those_of_a_counter(
    batches: list[list[tuple[int, list[int]]]], pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqmill.tokenizers_ext.id_counts.PENDING", pending)
    counts, expected = IdCounts(VOCAB_SIZE), Counter[tuple[int, int]]()
    for documents in batches:
        ids = pa.array([ids for _, ids in documents], pa.list_(pa.uint16()))
        counts.add(np.array([group for group, _ in documents], np.int64), ids)
        expected.update((group, id_) for group, ids in documents for id_ in ids)
    for group in range(GROUPS):
        found = dict(zip(*(array.tolist() for array in counts.of_group(group)), strict=True))
        assert found == {id_: count for (other, id_), count in expected.items() if other == group}
    rows = pa.Table.from_batches(counts.batches(), COUNTS).to_pylist()
    assert [(row["group"], row["id"], row["count"]) for row in rows] == [
        (*key, n) for key, n in sorted(expected.items())
    ]
