"""Texts that end a continuation, wherever the tokens are cut."""

from collections.abc import Callable, Sequence

CONTEXT = 8  # tokens: the bytes of a token may depend on so many before it
Decode = Callable[[Sequence[Sequence[int]]], Sequence[bytes]]
"""Lists of ids -> the bytes of each."""


def find_stops(text: bytes, stops: Sequence[str]) -> int | None:
    """Where the first of these texts begins, in bytes; None where there is none."""
    places = [place for stop in stops if (place := text.find(stop.encode())) >= 0]
    return min(places, default=None)


def text_before_stop(tokens: Sequence[int], stops: Sequence[str], decode: Decode) -> bytes | None:
    """What stands before the first of these texts; None where there is none, or where one of fewer tokens has one.

    Only the last tokens are decoded in most calls: a text that ends in the last token, and is m bytes long, begins in
    one of the m tokens before it at most, as all but special ones have bytes.
    """
    reach = CONTEXT + max(len(stop.encode()) for stop in stops)
    tail = decode([tokens[-reach:]])[0]
    is_long = len(tail) >= reach or len(tokens) <= reach
    if is_long and find_stops(tail, stops) is None:
        return None
    text = decode([tokens])[0]
    place = find_stops(text, stops)
    return None if place is None else text[:place]
