"""What benchmarks are asked for, and how what does not exist is refused."""

from collections.abc import Iterable

from seqmill.errors import UserError


def require_known(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names that are not known.

    Args:
        what: that has these names, as the message calls it: "case".

    Raises:
        UserError: a name that is not known; the message has those that are.
    """
    names = tuple(known)
    for name in given:
        if name not in names:
            raise UserError(f"there is no {what} {name!r}; choose from {', '.join(names)}")


def require_documents(count: int, verb: str = "read") -> int:
    """The number of documents, which are there to be read or packed.

    Raises:
        UserError: there are none.
    """
    if count < 1:
        raise UserError(f"--documents {count}: there is nothing to {verb}; give 1 or more")
    return count


def require_training(minutes: float, seeds: int) -> None:
    """Refuse an experiment that would train nothing.

    Raises:
        UserError: there are no minutes, or no seeds.
    """
    if minutes <= 0 or seeds < 1:
        raise UserError(f"--minutes {minutes} --seeds {seeds}: more than 0 minutes and at least 1 seed are needed")
