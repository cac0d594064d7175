import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.compress.dictionary import Dictionary
from seqmill.compress.healing import heal, range_of

SINGLES = [bytes([byte]) for byte in range(256)]
DICTIONARY = Dictionary.from_strings(
    [*SINGLES, b"ca", b"cab", b"cat", b"cats", b"cb", b"\xff\xff", b"\xff\xfe", b"c\xff"]
)


def test_the_next_id_begins_with_what_was_taken_back() -> None:
    strings = DICTIONARY.strings()
    healed = heal(DICTIONARY, np.array([strings.index(b"t"), strings.index(b"ca")]))
    assert healed.ids.tolist() == [strings.index(b"t")]
    assert healed.prefix == b"ca"
    assert [strings[i] for i in healed.next_ids] == [b"ca", b"cab", b"cat", b"cats"]


def test_a_prompt_of_nothing_may_go_on_with_anything() -> None:
    healed = heal(DICTIONARY, np.empty(0, np.uint16))
    assert (healed.prefix, healed.next_ids) == (b"", range(len(DICTIONARY)))


@given(st.binary(max_size=3) | st.sampled_from(DICTIONARY.strings()))
def test_a_range_holds_all_strings_of_a_prefix_and_no_other(prefix: bytes) -> None:
    strings = DICTIONARY.strings()
    assert [strings[i] for i in range_of(DICTIONARY, prefix)] == [
        string for string in strings if string.startswith(prefix)
    ]
