"""The numbers of windows as ids: one a window, or the stream of their bits cut into ids of 8 or 16 bits.

    two windows of 24 bits, 0x000001 0x000203      one id a window     1, 515
                                                   ids of 8 bits       0 0 1 0 2 3
                                                   ids of 16 bits      0x0000 0x0100 0x0203: the middle one is of both

The first bits of a number come first. Where windows do not fill the last id of a document, zeros do: fewer bits than a
window has, so the number of windows is known from the number of ids.
"""

import numpy as np

from seqmill.errors import UserError

VIEWS = (256, 65_536)
WIDEST_ID = 64  # bits of a window that can be one id


def view_bits(window: int, view: int | None) -> int:
    """Bits of an id: of a whole window if `view` is None and the window has 64 or fewer, 16 if it has more.

    Raises:
        UserError: no such view, or a window has fewer bits than one of its ids.
    """
    if view is None:
        return window if window <= WIDEST_ID else 16
    if view not in VIEWS:
        raise UserError(f"view = {view}: ids below {VIEWS[0]} or {VIEWS[1]} are possible, or None: one id a window")
    bits = view.bit_length() - 1
    if bits > window:
        raise UserError(
            f"view = {view}: a window of {window} bits is shorter than an id of {bits}, so its end could not be told; "
            f"choose view = 256 or None"
        )
    return bits


def id_dtype(bits: int) -> np.dtype:
    """The narrowest of uint16, uint32 and uint64."""
    return np.dtype(np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64)


def to_view(numbers: np.ndarray, window: int, bits: int) -> np.ndarray:
    """The ids of one document.

    Args:
        numbers: uint64[windows], or objects (Python's integers) of windows of more than 64 bits.
        window: bits of a window.
        bits: bits of an id: as `view_bits`.
    """
    if bits == window:
        return numbers.astype(id_dtype(bits))
    stream = _bytes_of(numbers, window)
    filled = np.concatenate([stream, np.zeros(-len(stream) % (bits // 8), np.uint8)])
    return filled.view(np.dtype(f">u{bits // 8}")).astype(np.uint16)


def from_view(ids: np.ndarray, window: int, bits: int) -> np.ndarray:
    """The numbers of the windows of one document: uint64[windows], or objects above 64 bits.

    Raises:
        UserError: an id has more bits than the view, or ids are missing at the end.
    """
    if len(ids) and int(ids.max()) >> bits:
        raise UserError(f"id {ids.max()} does not fit the {bits} bits of an id: the ids are not of this view")
    if bits == window:
        return ids.astype(np.uint64)
    windows = len(ids) * bits // window
    stream = ids.astype(np.dtype(f">u{bits // 8}")).view(np.uint8)
    used = -(-windows * window // 8)
    if -(-windows * window // bits) != len(ids) or _left_over(stream, windows * window).any():
        raise UserError(
            f"{len(ids)} ids of {bits} bits are no whole number of windows of {window} bits: ids are missing at the "
            "end, or these are not of such windows"
        )
    return _numbers_of(stream[:used], windows, window)


def _left_over(stream: np.ndarray, bits: int) -> np.ndarray:
    """The bits behind the first `bits`."""
    return np.unpackbits(stream[bits // 8 :])[bits % 8 :]


def _bytes_of(numbers: np.ndarray, window: int) -> np.ndarray:
    """uint8[...]: the bits of all numbers without a gap, zeros behind them up to a whole byte."""
    size = -(-window // 8)
    if numbers.dtype == object:
        whole = np.frombuffer(b"".join(number.to_bytes(size) for number in numbers), np.uint8)
    else:
        whole = numbers.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - size :].ravel()
    if window % 8 == 0:
        return whole
    return np.packbits(np.unpackbits(whole).reshape(-1, size * 8)[:, size * 8 - window :])


def _numbers_of(stream: np.ndarray, windows: int, window: int) -> np.ndarray:
    """The inverse of `_bytes_of`."""
    size = -(-window // 8)
    whole = stream
    if window % 8:
        bits = np.zeros((windows, size * 8), np.uint8)
        bits[:, size * 8 - window :] = np.unpackbits(stream)[: windows * window].reshape(windows, window)
        whole = np.packbits(bits)
    if window <= WIDEST_ID:
        wide = np.zeros((windows, 8), np.uint8)
        wide[:, 8 - size :] = whole.reshape(windows, size)
        return wide.view(">u8").ravel().astype(np.uint64)
    numbers = np.empty(windows, object)
    numbers[:] = [int.from_bytes(row.tobytes()) for row in whole.reshape(windows, size)]
    return numbers
