from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing import TokenStore

MANIFEST = {"vocab_size": 1000, "sources": ["a", "bb", "ccc"]}
NAMES = st.sampled_from(MANIFEST["sources"])
DOCUMENTS = st.lists(st.tuples(st.lists(st.integers(0, 999), max_size=12), NAMES), max_size=25)
Rows = list[tuple[list[int], str]]


def table_of(rows: Rows, first_id: int = 0, *, large: bool = False, value: pa.DataType | None = None) -> pa.Table:
    lists, text = (pa.large_list, pa.large_string()) if large else (pa.list_, pa.string())
    return pa.table(
        {
            "source": pa.array([name for _, name in rows], text),
            "input_ids": pa.array([ids for ids, _ in rows], lists(value or pa.uint16())),
            "doc_id": pa.array(range(first_id, first_id + len(rows)), pa.uint64()),
        }
    )


def sliced(rows: Rows, large: bool, cut: int) -> pa.Table:
    """The rows as a table of slices: batches that start inside their buffers, around a chunk of no rows."""
    padding: Rows = [([7] * 5, "bb")] * 3
    table = table_of(padding + rows + padding, 1000 - 3, large=large)
    cut = min(cut, len(rows))
    return pa.concat_tables([table.slice(3, cut), table.slice(2, 0), table.slice(3 + cut, len(rows) - cut)])


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.booleans(), st.integers(0, 25), st.randoms(use_true_random=False))
def test_fragments_of_sliced_tables_are_those_of_the_documents(
    first: Rows, second: Rows, large: bool, cut: int, random: np.random.Generator
) -> None:
    rows = first + second
    store = TokenStore([sliced(first, large, cut), table_of(second, 2000, large=not large)], MANIFEST)
    assert store.lengths.tolist() == [len(ids) for ids, _ in rows]
    assert store.doc_ids.tolist() == [1000 + i for i in range(len(first))] + [2000 + i for i in range(len(second))]
    items = [random.randrange(len(rows)) for _ in range(2 * len(rows))]
    starts = [random.randint(0, len(rows[item][0])) for item in items]
    stops = [random.randint(start, len(rows[item][0])) for item, start in zip(items, starts, strict=True)]
    item, start, stop = (np.array(values, np.int64) for values in (items, starts, stops))
    expected = [token for i, a, b in zip(items, starts, stops, strict=True) for token in rows[i][0][a:b]]
    gathered = store.gather(item, start, stop)
    assert gathered.dtype == np.uint16
    assert gathered.tolist() == expected
    following = [rows[i][0][b] if b < len(rows[i][0]) else -1 for i, b in zip(items, stops, strict=True)]
    assert store.next_token(item, stop).tolist() == following
    assert [store.sources[number] for number in store.source_of(item)] == [rows[i][1] for i in items]


def test_wide_tokens_of_a_small_vocabulary_are_narrowed() -> None:
    store = TokenStore([table_of([([1, 999], "a")], value=pa.uint32())], MANIFEST)
    assert store.gather(np.array([0]), np.array([0]), np.array([2])).dtype == np.uint16


def test_large_vocabularies_keep_wide_tokens() -> None:
    table = table_of([([1, 70_000], "a")], value=pa.uint32())
    store = TokenStore([table], {"vocab_size": 70_001, "sources": ["a"]})
    gathered = store.gather(np.array([0]), np.array([1]), np.array([2]))
    assert (gathered.dtype, gathered.tolist()) == (np.uint32, [70_000])


def test_sources_may_be_dictionary_encoded() -> None:
    table = table_of([([1], "a"), ([2], "ccc"), ([3], "a")])
    table = table.set_column(0, "source", table.column("source").dictionary_encode())
    assert TokenStore([table], MANIFEST).source_of(np.arange(3)).tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("item", "start", "stop"), [(2, 0, 1), (-1, 0, 1), (0, 0, 4), (0, -1, 2), (0, 2, 1), (1, 0, 1), (0, 4, 4)]
)
def test_fragments_outside_their_document_are_not_read(item: int, start: int, stop: int) -> None:
    store = TokenStore([table_of([([1, 2, 3], "a"), ([], "a")])], MANIFEST)
    with pytest.raises((IndexError, ValueError)):
        store.gather(np.array([item]), np.array([start]), np.array([stop]))


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    store = TokenStore([table_of([([1, 1000], "a")])], MANIFEST)
    with pytest.raises(UserError, match="id 1000, but their vocabulary has 1000"):
        store.gather(np.array([0]), np.array([0]), np.array([2]))


def test_an_unlisted_source_is_refused() -> None:
    store = TokenStore([table_of([([1], "a"), ([1], "zz")])], MANIFEST)
    with pytest.raises(UserError, match="document 1 is of a source that the manifest does not list"):
        store.source_of(np.array([0, 1]))


def refused_tables() -> list[tuple[pa.Table, str]]:
    good = table_of([([1], "a"), ([2], "a")])
    return [
        (good.drop_columns(["source"]), "no column 'source'"),
        (good.set_column(0, "source", pa.array(["a", None])), "1 nulls in 'source'"),
        (good.set_column(1, "input_ids", pa.array([[1], [2]], pa.list_(pa.int32()))), "type list<item: int32>"),
        (good.set_column(1, "input_ids", pa.array([1, 2], pa.uint16())), "type uint16"),
    ]


@pytest.mark.parametrize("case", range(4))
def test_other_tables_are_refused(case: int) -> None:
    table, message = refused_tables()[case]
    with pytest.raises(UserError, match=message):
        TokenStore([table], MANIFEST)


def test_mixed_token_types_are_refused() -> None:
    rows: Rows = [([1], "a")]
    with pytest.raises(UserError, match="several types"):
        TokenStore([table_of(rows), table_of(rows, value=pa.uint32())], MANIFEST)


def test_a_tokens_folder_is_opened_in_file_order(pack: Callable) -> None:
    corpus = pack([5, 0, 3, 40, 9, 2, 1], 8).corpus
    store = TokenStore.open(corpus.folder)
    assert store.doc_ids.tolist() == corpus.doc_ids
    assert store.lengths.tolist() == [5, 0, 3, 40, 9, 2, 1]
    assert store.gather(np.array([3]), np.array([10]), np.array([40])).tolist() == corpus.documents[3][10:].tolist()
