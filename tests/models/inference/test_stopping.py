"""Stop texts are found as soon as they are there, from the last tokens alone."""

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from seqmill.models.inference.stopping import text_before_stop

PIECES = (b"", b"a", b"b", b"ab", b"ba", b"aab", b"\xc3", b"\xa4b", b"baaaaaaaaaaa")  # the first one is a special token


def decode(sequences: Sequence[Sequence[int]]) -> list[bytes]:
    return [b"".join(PIECES[token] for token in tokens) for tokens in sequences]


@given(
    tokens=st.lists(st.one_of(st.just(0), st.integers(0, len(PIECES) - 1)), max_size=60),
    stops=st.lists(st.text("ab\u00e4", min_size=1, max_size=7), min_size=1, max_size=3),
    decodes_parts=st.booleans(),
)
@example([1, *[0] * 9, 8], ["ab"], True)
def test_a_text_ends_at_the_first_token_that_completes_a_stop(
    tokens: list[int], stops: list[str], decodes_parts: bool
) -> None:
    for count in range(1, len(tokens) + 1):
        text = decode([tokens[:count]])[0]
        places = [text.find(stop.encode()) for stop in stops if stop.encode() in text]
        found = text_before_stop(tokens[:count], stops, decode, decodes_parts)
        assert found == (text[: min(places)] if places else None)
        if found is not None:
            break


def test_long_texts_are_not_decoded_again_at_every_token() -> None:
    decoded = 0

    def counting(sequences: Sequence[Sequence[int]]) -> list[bytes]:
        nonlocal decoded
        decoded += sum(map(len, sequences))
        return decode(sequences)

    tokens = [1, 2] * 500
    for count in range(1, len(tokens) + 1):
        assert text_before_stop(tokens[:count], ["aaa"], counting, decodes_parts=True) is None
    assert decoded <= 10 * len(tokens)


def test_bytes_that_depend_on_all_others_are_always_decoded_together() -> None:
    """A decoder that gives up a run of bytes as a whole, where it is no text."""

    def decode_runs(sequences: Sequence[Sequence[int]]) -> list[bytes]:
        return [bytes(tokens).decode(errors="ignore").encode() if tokens[0] < 128 else b"?" for tokens in sequences]

    tokens = list("a春の夜の夢のごとし。".encode())
    assert text_before_stop(tokens, ["。"], decode_runs) == "a春の夜の夢のごとし".encode()
