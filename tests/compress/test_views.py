import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress.views import from_view, to_view, view_bits
from seqmill.errors import UserError


def as_text(numbers: list[int], width: int) -> str:
    return "".join(f"{number:0{width}b}" for number in numbers)


@settings(deadline=None)
@given(st.integers(8, 128), st.sampled_from([None, 256, 65_536]), st.data())
def test_ids_are_the_bits_of_the_windows_in_order(window: int, view: int | None, data: st.DataObject) -> None:
    if view == 65_536 and window < 16:
        return
    numbers = data.draw(st.lists(st.integers(0, (1 << window) - 1), max_size=9))
    bits = view_bits(window, view)
    column = np.array(numbers, np.uint64 if window <= 64 else object)
    ids = to_view(column, window, bits)
    plain, found = as_text(numbers, window), as_text(ids.tolist(), bits)
    assert found.startswith(plain)
    assert len(found) - len(plain) < bits
    assert "1" not in found[len(plain) :]
    assert from_view(ids, window, bits).tolist() == numbers
    assert ids.dtype == (np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64)


@settings(deadline=None)
@given(st.integers(8, 128), st.sampled_from([256, 65_536]), st.integers(1, 20), st.data())
def test_a_stream_that_was_cut_off_is_refused_unless_it_ends_with_a_window(
    window: int, view: int, windows: int, data: st.DataObject
) -> None:
    if view == 65_536 and window < 16:
        return
    bits = view_bits(window, view)
    ids = to_view(np.array([(1 << window) - 1] * windows, np.uint64 if window <= 64 else object), window, bits)
    cut = data.draw(st.integers(0, len(ids) - 1))
    if cut * bits % window < bits and (cut * bits % window == 0):
        assert len(from_view(ids[:cut], window, bits)) == cut * bits // window
    else:
        with pytest.raises(UserError, match="no whole number of windows"):
            from_view(ids[:cut], window, bits)


def test_impossible_views_are_refused() -> None:
    with pytest.raises(UserError, match="view = 300"):
        view_bits(16, 300)
    with pytest.raises(UserError, match="a window of 12 bits is shorter than an id of 16"):
        view_bits(12, 65_536)
    with pytest.raises(UserError, match="id 256 does not fit the 8 bits"):
        from_view(np.array([256, 0]), 16, 8)
