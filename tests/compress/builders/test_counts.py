import numpy as np
import pytest

from seqmill.compress.builders.counts import counts, filled
from seqmill.compress.texts import Texts
from seqmill.errors import UserError


@pytest.mark.parametrize(("window", "specials"), [(8, None), (10, 5), (16, None), (17, None)])
def test_a_dictionary_has_a_string_for_every_number(window: int, specials: int | None, texts: Texts) -> None:
    table = counts(texts, window, specials)
    table.check()
    strings = set(table.strings())
    assert len(strings) == (1 << window) - ((64 if window == 16 else 0) if specials is None else specials)
    assert {string[:-1] for string in strings if len(string) > 1} <= strings


@pytest.mark.parametrize("documents", [[], [b""], [b"a"], [b"ab" * 40]])
def test_a_sample_with_too_few_strings_is_filled_with_the_shortest_ones(documents: list[bytes]) -> None:
    table = counts(Texts.of(documents), 13)
    strings = set(table.strings())
    assert len(strings) == 8192
    last = max(string for string in strings if len(string) == 2 and not any(string in d for d in documents))
    assert all(bytes([a, b]) in strings for a in range(256) for b in range(256) if bytes([a, b]) <= last)


def test_the_rest_is_filled_in_order_of_length_and_bytes() -> None:
    single = [bytes([byte]) for byte in range(256)]
    assert filled([*single, b"\x00\x01"], 259)[257:] == [b"\x00\x00", b"\x00\x02"]


def test_strings_are_counted_where_windows_begin_if_that_is_known() -> None:
    texts = Texts.of([b"xyxyxyzz"])
    assert b"xyx" in counts(texts, 9, specials=253, starts=np.array([0, 2, 4], np.int32)).strings()
    with pytest.raises(UserError, match="window = 24 bits"):
        counts(texts, 24)
