"""Texts that end a continuation, wherever the tokens are cut."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[Sequence[int]]], Sequence[bytes]]
"""Lists of ids -> the bytes of each."""


def find_stops(text: bytes, stops: Sequence[str]) -> int | None:
    """Where the first of these texts begins, in bytes; None where there is none."""
    places = [place for stop in stops if (place := text.find(stop.encode())) >= 0]
    return min(places, default=None)
