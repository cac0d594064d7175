"""Personal data replaced by placeholders: e-mail addresses, IP addresses, telephone numbers.

Candidates are found by RE2 over whole columns; only texts that hold one are looked at one by one, where `ipaddress` and
`phonenumbers` (Google's libphonenumber) decide about each candidate. A pattern alone would take version numbers, ISBNs
and times of day for addresses and numbers.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.pipeline.filters.config import Masking

EMAIL = (
    r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?"  # what stands before the @ ends in no dot
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b"
)
# four numbers that are no part of a longer run of numbers, or hexadecimal groups with at least two colons
IP = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)|(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"
IP_HINT = r"(?:\d{1,3}\.){3}\d|[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:"
INTERNATIONAL_PHONE = r"(?<![\w+])\+[1-9](?:[ ().\-/]{0,3}\d){6,14}(?!\d)"
ANY_PHONE = r"(?<![\w+.,-])(?:\+|\(?)\d(?:[ ().\-/]{0,3}\d){6,14}(?!\d)"
PHONE_HINT = r"\d(?:[ ().\-/]{0,3}\d){6}"
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291: all IPv6 addresses in public use


@dataclass(frozen=True)
class Masked:
    """Texts of a column after one kind was masked, and what it changed, int64[documents] each."""

    text: pa.Array
    items: np.ndarray  # occurrences
    removed_bytes: np.ndarray  # of the occurrences
    inserted_bytes: np.ndarray  # of their placeholders


def require_phone_numbers() -> None:
    """Find out before any work whether numbers can be told.

    Raises:
        UserError: the package is not installed.
    """
    _phone_library()


def mask(text: pa.Array, kind: str, settings: Masking) -> Masked:
    """Mask one kind in a large_string column."""
    if kind == "email":
        return _mask_everywhere(text, "@", EMAIL, settings.email)
    if kind == "ip":
        return _mask_candidates(text, IP_HINT, IP, settings.ip, _ip_judge(settings.public_ips_only))
    pattern = ANY_PHONE if settings.phone_regions else INTERNATIONAL_PHONE
    return _mask_candidates(text, PHONE_HINT, pattern, settings.phone, _phone_judge(settings.phone_regions))


def _mask_everywhere(text: pa.Array, literal: str, pattern: str, placeholder: str) -> Masked:
    """Every match is masked; only texts with `literal` are searched."""
    has = pc.match_substring(text, literal)
    some = text.filter(has)
    items = np.zeros(len(text), np.int64)
    inside = has.to_numpy(zero_copy_only=False)
    items[inside] = pc.count_substring_regex(some, pattern).to_numpy(zero_copy_only=False)
    if not items.any():
        return _unchanged(text)
    literal_placeholder = placeholder.replace("\\", "\\\\")  # RE2 reads \1 as a group
    changed = pc.replace_with_mask(text, has, pc.replace_substring_regex(some, pattern, literal_placeholder))
    return _described(text, changed, items, placeholder)


def _mask_candidates(text: pa.Array, hint: str, pattern: str, placeholder: str, judge: Callable[[str], bool]) -> Masked:
    """The matches that `judge` accepts are masked; only texts that match `hint` are searched."""
    compiled = re.compile(pattern, re.ASCII)
    items = np.zeros(len(text), np.int64)
    results: list[str] = []
    for index in np.flatnonzero(pc.match_substring_regex(text, hint).to_numpy(zero_copy_only=False)):
        count = 0

        def replacement(match: re.Match[str]) -> str:
            nonlocal count
            if not judge(match.group()):
                return match.group()
            count += 1
            return placeholder

        new = compiled.sub(replacement, text[int(index)].as_py())
        if count:
            items[index] = count
            results.append(new)
    if not results:
        return _unchanged(text)
    changed = pc.replace_with_mask(text, pa.array(items > 0), pa.array(results, text.type))
    return _described(text, changed, items, placeholder)


def _unchanged(text: pa.Array) -> Masked:
    nothing = np.zeros(len(text), np.int64)
    return Masked(text, nothing, nothing, nothing)


def _described(before: pa.Array, after: pa.Array, items: np.ndarray, placeholder: str) -> Masked:
    shrunk = pc.subtract(pc.binary_length(before), pc.binary_length(after)).to_numpy(zero_copy_only=False)
    inserted = items * len(placeholder.encode())
    return Masked(after, items, shrunk + inserted, inserted)


def _ip_judge(public_only: bool) -> Callable[[str], bool]:
    def judge(candidate: str) -> bool:
        try:
            address = ipaddress.ip_address(candidate)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_UNICAST:
            # "Bed::Ada" and "::" parse too: of other ranges only what cannot be a name, and only if asked for
            return not public_only and any(character.isdigit() for character in candidate)
        return not public_only or address.is_global

    return judge


def _phone_judge(regions: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a candidate is a number that its country code's, or one of the regions', numbering plan has."""
    library = _phone_library()

    def judge(candidate: str) -> bool:
        for region in [None] if candidate.startswith("+") else regions:
            try:
                if library.is_valid_number(library.parse(candidate, region)):
                    return True
            except library.NumberParseException:
                continue
        return False

    return judge


def _phone_library() -> Any:
    try:
        import phonenumbers
    except ImportError as error:
        raise UserError(
            "masking telephone numbers needs the package phonenumbers, which is not installed; run "
            "`pip install phonenumbers`, or leave phone out of --mask"
        ) from error
    return phonenumbers
