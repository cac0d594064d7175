import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_level import SPECIAL_IDS, ByteEncoder


@given(st.lists(st.binary(max_size=40)), st.integers(0, 3))
def test_arbitrary_bytes_come_back(documents: list[bytes], start: int) -> None:
    encoder = ByteEncoder()
    column = pa.array(documents, pa.large_binary()).slice(start)
    ids = encoder.encode(column)
    assert ids.type == pa.list_(pa.uint16())
    assert ids.to_pylist() == [list(document) for document in documents[start:]]
    assert encoder.decode(ids).to_pylist() == documents[start:]


def test_special_ids_lie_outside_the_bytes_and_decode_to_nothing() -> None:
    assert min(SPECIAL_IDS.values()) > 255
    ids = pa.array([[104, 105, SPECIAL_IDS["eos"]], [SPECIAL_IDS["pad"]]], pa.list_(pa.uint16()))
    assert ByteEncoder().decode(ids).to_pylist() == [b"hi", b""]


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="id 300"):
        ByteEncoder().decode(pa.array([[300]], pa.list_(pa.uint16())))
