"""How many strings a window of some bits can tell apart."""

from seqmill.errors import UserError

LEAST_WINDOW, MOST_WINDOW, MOST_TABLE_WINDOW = 8, 128, 20  # bits; beyond 20 a table has more strings than a cache holds
SPECIALS_OF_16 = 64  # at 16 bits, so that special ids fit uint16 too


def code_range(window: int, specials: int | None = None) -> int:
    """N0, the numbers of a window that stand for bytes: 2**window less those kept for special ids.

    Args:
        window: bits, 8 to 128.
        specials: numbers kept; default: 64 of a window of 16 bits, none of others.

    Raises:
        UserError: either is out of range: fewer than 256 numbers would be left.
    """
    if not LEAST_WINDOW <= window <= MOST_WINDOW:
        raise UserError(f"window = {window} bits: choose from {LEAST_WINDOW} to {MOST_WINDOW}; 16 is usual")
    kept = (SPECIALS_OF_16 if window == 16 else 0) if specials is None else specials
    if not 0 <= kept <= (1 << window) - 256:
        raise UserError(
            f"specials = {kept}: from 0 to {(1 << window) - 256} of the {1 << window} numbers of a window of {window} "
            "bits, for every byte needs one"
        )
    return (1 << window) - kept


def strings_of_table(window: int, specials: int | None = None) -> int:
    """`code_range` of a window whose strings can be listed, 8 to 20 bits.

    Raises:
        UserError: the window is out of that range, or specials are.
    """
    if not LEAST_WINDOW <= window <= MOST_TABLE_WINDOW:
        raise UserError(
            f"window = {window} bits: dictionaries have windows of {LEAST_WINDOW} to {MOST_TABLE_WINDOW}; beyond that "
            "there are too many strings to list; code longer windows with WindowCoder"
        )
    return code_range(window, specials)
