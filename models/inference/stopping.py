"""Texts that end a continuation, wherever the tokens are cut."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[Sequence[int]]], Sequence[bytes]]
"""Lists of ids -> the bytes of each."""


def find_stops(text: bytes, stops: Sequence[str]) -> int | None:
    """Where the first of these texts begins, in bytes; None where there is none."""
    places = [place for stop in stops if (place := text.find(stop.encode())) >= 0]
    return min(places, default=None)


def text_before_stop(
    tokens: Sequence[int], stops: Sequence[str], decode: Decode, decodes_parts: bool = False
) -> bytes | None:
    """What stands before the first of these texts; None where there is none, or where one of fewer tokens has one.

    Args:
        decodes_parts: whether the bytes of a list are those of its ids one after the other, but for a space at the
            beginning. Then a text of m bytes that ends in the last token begins in one of the m tokens before it, and
            others are decoded only where some of these have no bytes, as special tokens do.
    """
    reach = max(len(stop.encode()) for stop in stops)
    if decodes_parts and len(tokens) > reach + 2:
        tail, before = decode([tokens[-reach - 2 :], tokens[-reach - 2 : -1]])
        if len(before) >= reach and find_stops(tail, stops) is None:
            return None
    text = decode([tokens])[0]
    place = find_stops(text, stops)
    return None if place is None else text[:place]
