from itertools import chain

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.merging import (
    MergeConfig,
    MergeTable,
    apply_table,
    expand,
    learn_table,
    merge_batch,
)
from seqmill.tokenizers_ext.splitting import PATTERNS
from seqmill.tokenizers_ext.subword import SubwordEncoder

from .oracle import merge_by_frequency, merge_by_rank

TEXTS = [
    "the cat sat on the mat, the cat's mat; the dog sat there too",
    "",
    "ha ha hahaha\n\n  the theatre there",
    "123456 naïve naïve 日本語日本語 x'll",
    "aaaaaaaaaaaaaaaaaaaaaaa aaaa",
]
RULES = ["none", "word", "gpt2"]


@pytest.fixture(scope="module")
def encoder(tokenizer_json: bytes) -> SubwordEncoder:
    return SubwordEncoder(tokenizer_json)


def encoded(encoder: SubwordEncoder, texts: list[str]) -> pa.ListArray:
    return encoder.encode(pa.array(texts, pa.large_string()))


def stretches(encoder: SubwordEncoder, row: list[int], rule: str) -> list[list[int]]:
    """The tokens of a row, kept apart where a pre-token begins: by the regular expressions of `tokenizers`."""
    if rule == "none":
        return [row]
    pieces = encoder.decode(pa.array([[id_] for id_ in row], pa.list_(pa.uint16()))).to_pylist()
    text = b"".join(pieces).decode()
    splitter = pre_tokenizers.Split(Regex(PATTERNS[rule]), "isolated")
    borders = {len(text[:start].encode()) for _, (start, _) in splitter.pre_tokenize_str(text)}
    found: list[list[int]] = []
    at = 0
    for id_, piece in zip(row, pieces, strict=True):
        if not found or any(at <= border < at + len(piece) for border in borders):
            found.append([])
        found[-1].append(id_)
        at += len(piece)
    return found


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.sampled_from(TEXTS) | st.text("abc théè日 '\n", max_size=30), max_size=5),
    merges=st.integers(0, 30),
)
def test_a_batch_is_merged_as_by_counting_anew(
    encoder: SubwordEncoder, rule: str, texts: list[str], merges: int
) -> None:
    ids = encoded(encoder, texts)
    segments = [stretches(encoder, row, rule) for row in ids.to_pylist()]
    flat = [segment for row in segments for segment in row]
    pairs, left_over = merge_by_frequency(flat, [1] * len(flat), encoder.vocab_size, merges)
    merged = merge_batch(encoder, ids, MergeConfig(merges, rule=rule))
    joined = iter(left_over)
    assert merged.ids.to_pylist() == [list(chain.from_iterable(next(joined) for _ in row)) for row in segments]
    assert list(zip(merged.table.left.tolist(), merged.table.right.tolist(), strict=True)) == pairs
    assert expand(merged.ids, merged.table).to_pylist() == ids.to_pylist()


@pytest.mark.parametrize("rule", RULES)
def test_a_row_merged_by_itself_does_not_depend_on_its_neighbours(encoder: SubwordEncoder, rule: str) -> None:
    config = MergeConfig(20, "sample", rule)
    together = merge_batch(encoder, encoded(encoder, TEXTS), config)
    for number, text in enumerate(TEXTS):
        alone = merge_batch(encoder, encoded(encoder, [text]), config)
        assert _as_bytes(encoder, together.ids[number : number + 1], together.table) == _as_bytes(
            encoder, alone.ids, alone.table
        )
        batch = merge_batch(encoder, encoded(encoder, [text]), MergeConfig(20, "batch", rule))
        assert alone.ids.to_pylist() == batch.ids.to_pylist()
    assert expand(together.ids, together.table).to_pylist() == encoded(encoder, TEXTS).to_pylist()


def test_merged_ids_of_one_batch_do_not_depend_on_the_order_of_its_rows(encoder: SubwordEncoder) -> None:
    forwards = merge_batch(encoder, encoded(encoder, TEXTS), MergeConfig(25))
    backwards = merge_batch(encoder, encoded(encoder, TEXTS[::-1]), MergeConfig(25))
    assert forwards.ids.to_pylist() == backwards.ids.to_pylist()[::-1]


def test_more_merges_never_make_rows_longer_and_end_at_one_id_a_pre_token(encoder: SubwordEncoder) -> None:
    ids = encoded(encoder, TEXTS)
    lengths = [
        sum(map(len, merge_batch(encoder, ids, MergeConfig(merges)).ids.to_pylist())) for merges in (0, 5, 20, 1000)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == len(ids.flatten())
    splitter = pre_tokenizers.Split(Regex(PATTERNS["gpt2"]), "isolated")
    assert lengths[-1] == sum(len(splitter.pre_tokenize_str(text)) for text in TEXTS)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.sampled_from(TEXTS) | st.text("abc théè日 '\n", max_size=30), max_size=4))
def test_a_table_gives_a_row_the_same_ids_in_every_batch(encoder: SubwordEncoder, texts: list[str]) -> None:
    table = learn_table(encoder, encoded(encoder, TEXTS), MergeConfig(40, rule="word"))
    ids = encoded(encoder, texts)
    merged = apply_table(encoder, ids, table)
    pairs = list(zip(table.left.tolist(), table.right.tolist(), strict=True))
    for row, found in zip(ids.to_pylist(), merged.to_pylist(), strict=True):
        segments = [merge_by_rank(part, pairs, encoder.vocab_size) for part in stretches(encoder, row, "word")]
        assert found == list(chain.from_iterable(segments))
    assert expand(merged, table).to_pylist() == ids.to_pylist()


def test_special_ids_are_never_merged(encoder: SubwordEncoder) -> None:
    eos = encoder.special_ids["eos"]
    ids = pa.array([[eos, 5, eos, 5, eos, 5]], pa.list_(pa.uint16()))
    assert merge_batch(encoder, ids, MergeConfig(10, rule="none")).ids.to_pylist() == ids.to_pylist()


def test_bytes_are_merged_as_any_other_ids() -> None:
    encoder = ByteEncoder()
    ids = encoder.encode(pa.array(["banana bandana"]))
    merged = merge_batch(encoder, ids, MergeConfig(2))
    assert merged.table.to_arrow().column("base").to_pylist() == [list(b"an"), list(b"ban")]
    assert expand(merged.ids, merged.table).to_pylist() == ids.to_pylist()


def test_a_table_comes_back_from_arrow_and_names_what_its_ids_stand_for(encoder: SubwordEncoder) -> None:
    table = learn_table(encoder, encoded(encoder, TEXTS), MergeConfig(15))
    back = MergeTable.from_arrow(table.to_arrow())
    assert back.to_arrow().equals(table.to_arrow(), check_metadata=True)
    first = table.to_arrow().to_pylist()[0]
    assert first["id"] == encoder.vocab_size
    assert first["base"] == [first["left"], first["right"]]


def test_a_table_of_another_tokenizer_or_a_damaged_one_is_refused(encoder: SubwordEncoder) -> None:
    table = learn_table(encoder, encoded(encoder, TEXTS), MergeConfig(5))
    with pytest.raises(UserError, match="learn a table for this tokenizer"):
        apply_table(ByteEncoder(), pa.array([[1]], pa.list_(pa.uint16())), table)
    batch = table.to_arrow()
    damaged = batch.set_column(1, "left", pa.array([4_000_000] * len(batch), pa.uint32()))
    with pytest.raises(UserError, match="it is damaged"):
        MergeTable.from_arrow(damaged)


def test_impossible_settings_and_ids_are_refused(encoder: SubwordEncoder) -> None:
    for settings_, message in (
        ({"merges": -1}, "0 or more"),
        ({"scope": "frozen"}, "learn a table"),
        ({"rule": "sentence"}, "choose one of none"),
        ({"min_count": 0}, "1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            MergeConfig(**settings_)
    with pytest.raises(UserError, match="outside the vocabulary"):
        merge_batch(encoder, pa.array([[encoder.vocab_size]], pa.list_(pa.uint32())), MergeConfig())


def _as_bytes(encoder: SubwordEncoder, ids: pa.ListArray, table: MergeTable) -> list[bytes]:
    """What every merged id of a single row stands for."""
    singles = pa.array([[id_] for id_ in ids.to_pylist()[0]], pa.list_(pa.uint32()))
    return encoder.decode(expand(singles, table)).to_pylist()
