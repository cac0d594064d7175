import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.compress.byte_model import check_frequencies, quantise
from seqmill.errors import UserError


@given(st.lists(st.floats(0, 1e30), min_size=256, max_size=256), st.integers(8, 16))
def test_frequencies_are_one_or_more_and_add_up(probabilities: list[float], precision: int) -> None:
    probabilities[7] = 1.0
    frequencies = quantise(np.array([probabilities]), precision)
    check_frequencies(frequencies, precision)
    assert frequencies.dtype == np.uint32


def test_what_is_left_over_goes_to_the_first_of_the_most_probable() -> None:
    row = np.zeros((1, 256))
    row[0, [3, 9]] = 0.4
    row[0, 200] = 0.2
    frequencies = quantise(row, 9)
    assert (frequencies[0, 3], frequencies[0, 9], frequencies[0, 200]) == (1 + 102 + 1, 1 + 102, 1 + 51)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_numbers_that_are_no_probabilities_are_refused(bad: float) -> None:
    rows = np.ones((3, 256))
    rows[1, 5] = bad
    with pytest.raises(UserError, match="row 1 of the model's probabilities"):
        quantise(rows, 14)
    with pytest.raises(UserError, match="row 0 of the model's probabilities"):
        quantise(np.zeros((1, 256)), 14)


def test_a_model_that_gives_a_byte_no_frequency_is_refused() -> None:
    frequencies = np.full((2, 256), 64, np.uint32)
    check_frequencies(frequencies, 14)
    frequencies[1, 65], frequencies[1, 66] = 0, 128
    with pytest.raises(UserError, match="gives byte 65 a frequency of 0 after context 1"):
        check_frequencies(frequencies, 14)
    with pytest.raises(UserError, match=r"after context 0 add up to 16384, not 2\*\*15"):
        check_frequencies(frequencies[:1], 15)
    with pytest.raises(UserError, match="precision = 17 bits: choose between 8 and 16"):
        check_frequencies(frequencies, 17)
    with pytest.raises(UserError, match=r"shape \(2, 255\)"):
        check_frequencies(frequencies[:, :255], 14)
