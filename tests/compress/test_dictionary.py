import numpy as np
import pytest

from seqmill.compress.dictionary import Dictionary
from seqmill.errors import UserError

SINGLES = [bytes([byte]) for byte in range(256)]


def test_an_id_is_the_rank_of_its_string() -> None:
    dictionary = Dictionary.from_strings([b"the ", b"the", *SINGLES])
    assert len(dictionary) == 258
    assert dictionary.strings() == sorted([*SINGLES, b"the", b"the "])
    assert dictionary.string(117) == b"the"
    assert dictionary.lengths.sum() == len(dictionary.blob)


def test_the_fingerprint_tells_dictionaries_apart() -> None:
    prints = {Dictionary.from_strings([*SINGLES, *more]).fingerprint for more in ([], [b"aa"], [b"ab"], [b"aa", b"ab"])}
    assert len(prints) == 4
    again = Dictionary.from_strings([b"aa", *SINGLES])
    assert again.fingerprint in prints


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        (SINGLES[1:], "lacks 1 of the 256 single bytes, the first 0"),
        ([], "lacks 256 of the 256 single bytes"),
        ([*SINGLES, b""], "have 0 to 1 bytes: 1 to 255 are possible"),
        ([*SINGLES, b"a" * 256], "have 1 to 256 bytes"),
        ([*SINGLES, b"ab", b"ab"], "strings 98 and 99 of a dictionary do not ascend: b'ab', b'ab'"),
    ],
)
def test_strings_that_could_not_encode_every_text_are_refused(strings: list[bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dictionary.from_strings(strings)


def test_strings_out_of_order_are_refused() -> None:
    blob = np.frombuffer(b"".join(reversed(SINGLES)), np.uint8)
    with pytest.raises(UserError, match="do not ascend"):
        Dictionary(np.arange(257), blob).check()
