import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext import BpeConfig, train_bpe
from seqmill.tokenizers_ext.encoder import Encoder, offsets_and_bytes
from seqmill.tokenizers_ext.merging.boundaries import BEGINS, GOES_ON, UNTOLD, flat_rows, outline, segments_of
from seqmill.tokenizers_ext.splitting import GPT2, PATTERNS, WORD, character_classes, pre_token_ends
from seqmill.tokenizers_ext.subword import SubwordEncoder
from seqmill.tokenizers_ext.token_bytes import bytes_of_ids

# Trained on what lies between white space, so that ids hold words with signs and numbers in them, and pieces of both.
VOCAB_SIZE = 400
MIXED = [
    "it's don't he'll x1 1x 12345 3.14 a.b (foo) !bar ... --- 'quoted' 's 'll ' '' !' '! o'clock f(x)=y[1]; ",
    "naïve Ünï 日本語 日本 語1 Ελληνικά Русский e\u0301a a\u0301b ½ ٣٤ \u3000wide\u00a0space 👩\u200d👧 ",
    "a\n b\n\nc\r\n  d\t\te   f \n \n! \n1  2   3 ...\n\n' 's  's\n's ",
]


@pytest.fixture(scope="module")
def encoder() -> SubwordEncoder:
    return SubwordEncoder(train_bpe([[text * 20 for text in MIXED]], VOCAB_SIZE, BpeConfig(split="word")))


def slowly(ids: list[list[int]], encoder: Encoder, rule: str) -> list[int]:
    """The numbers of the stretches, from the bytes of whole rows."""
    offsets, data = bytes_of_ids(encoder)
    numbers: list[int] = []
    for row in ids:
        pieces = [data[offsets[id_] : offsets[id_ + 1]].tobytes() for id_ in row]
        text = pa.array([b"".join(pieces)], pa.large_binary())
        begins = {0, *(pre_token_ends(*offsets_and_bytes(text), rule)[0].tolist() if rule != "none" else [])}
        at, alone = 0, True  # no stretch goes over the border of a row
        for piece in pieces:
            new = alone or not piece or any(at <= begin < at + len(piece) for begin in begins)
            numbers.append((numbers[-1] if numbers else -1) + new)
            at, alone = at + len(piece), not piece
    return numbers


def numbered(ids: list[list[int]], encoder: Encoder, rule: str) -> list[int]:
    values, offsets = flat_rows(pa.array(ids, pa.list_(pa.uint16())))
    return segments_of(values, offsets, encoder, rule).tolist()


@pytest.mark.parametrize("rule", ["none", *PATTERNS])
@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1) | st.integers(257, VOCAB_SIZE - 1), max_size=25), max_size=4)
)
@example(ids=[[], [0], [0, 300, 0, 0, 301, 302, 0], []])
def test_any_ids_are_kept_apart_where_pre_tokens_of_their_bytes_begin(
    encoder: SubwordEncoder, rule: str, ids: list[list[int]]
) -> None:
    assert encoder.vocab_size == VOCAB_SIZE
    assert numbered(ids, encoder, rule) == slowly(ids, encoder, rule)


@pytest.mark.parametrize("rule", PATTERNS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from("".join(MIXED).split(" ")), max_size=20).map(" ".join), max_size=4))
@example(texts=MIXED)
def test_text_is_kept_apart_where_its_pre_tokens_begin(encoder: SubwordEncoder, rule: str, texts: list[str]) -> None:
    ids = encoder.encode(pa.array(texts, pa.large_string())).to_pylist()
    assert numbered(ids, encoder, rule) == slowly(ids, encoder, rule)


def outline_of(piece: bytes, rule: int) -> tuple[int, list[int]]:
    """The kind of run that begins with an id, and what it does behind runs of letters, numbers and signs."""
    told = outline(np.frombuffer(piece, np.uint8), 0, len(piece), rule, character_classes())
    return told & 3, [told >> 2 * kind & 3 for kind in (1, 2, 3)]


def test_an_outline_tells_what_holds_wherever_the_id_stands() -> None:
    assert outline_of(b" the", GPT2) == (1, [BEGINS] * 3)
    assert outline_of(b"ing", GPT2) == (1, [GOES_ON, BEGINS, BEGINS])
    assert outline_of("語".encode(), GPT2) == (1, [GOES_ON, BEGINS, BEGINS])
    assert outline_of(b"42", GPT2) == (2, [BEGINS, GOES_ON, BEGINS])
    assert outline_of(b"a1", GPT2) == (UNTOLD, [UNTOLD, BEGINS, BEGINS])
    assert outline_of(b"a1", WORD) == (1, [GOES_ON, BEGINS, BEGINS])
    assert outline_of(b"'s", GPT2) == (UNTOLD, [BEGINS, BEGINS, UNTOLD])  # a contraction, unless a sign is before it
    assert outline_of(b"'", GPT2) == (UNTOLD, [BEGINS, BEGINS, GOES_ON])
    assert outline_of(b" ", GPT2) == (UNTOLD, [BEGINS] * 3)
    for piece in (b"", "語".encode()[:2], "語".encode()[1:], b"\xff", b"\xe8a"):
        assert outline_of(piece, GPT2) == (UNTOLD, [UNTOLD] * 3)
    assert outline_of(b"a\xe8", GPT2) == (UNTOLD, [UNTOLD, BEGINS, BEGINS])


def test_a_rule_that_does_not_exist_is_refused(encoder: SubwordEncoder) -> None:
    with pytest.raises(UserError, match="choose one of none, gpt2"):
        numbered([[1]], encoder, "gpt-7")
