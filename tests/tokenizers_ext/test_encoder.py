from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext import append_id, id_type
from seqmill.tokenizers_ext.encoder import as_large_binary, list_array, offsets_and_bytes


@pytest.mark.parametrize(("vocab_size", "expected"), [(1, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.uint32())])
def test_ids_take_two_bytes_exactly_when_the_vocabulary_fits(vocab_size: int, expected: pa.DataType) -> None:
    assert id_type(vocab_size) == expected


@given(st.lists(st.lists(st.integers(0, 60_000), max_size=5)), st.integers(0, 4))
def test_append_id_puts_one_id_behind_every_list_even_in_a_slice(lists: list[list[int]], start: int) -> None:
    array = pa.array(lists, pa.list_(pa.uint16())).slice(start)
    assert append_id(array, 7).to_pylist() == [[*ids, 7] for ids in lists[start:]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view()])
def test_every_text_and_binary_column_is_read_as_its_bytes(kind: pa.DataType) -> None:
    column = pa.array(["skipped", "é", "", "日本"], pa.string()).cast(kind)[1:]
    offsets, data = offsets_and_bytes(as_large_binary(column))
    found = [data[a:b].tobytes().decode() for a, b in pairwise(offsets)]
    assert found == ["é", "", "日本"]


def test_nulls_and_numbers_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match="1 null documents"):
        as_large_binary(pa.array(["a", None]))
    with pytest.raises(UserError, match="type int64"):
        as_large_binary(pa.array([1]))


def test_more_ids_than_a_list_array_can_hold_are_refused() -> None:
    with pytest.raises(UserError, match="2147483648 tokens"):
        list_array(np.array([0, 2**31]), np.empty(0, np.uint32), 10)
