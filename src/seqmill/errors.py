"""The one exception that a user is meant to read."""

import errno

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


class UserError(Exception):
    """A mistake that the user can fix. Its text names the value, the limit, the consequence and the way out.

    The command line prints the text as one line on stderr and exits with code 2; any other exception keeps its
    traceback, since it is ours.
    """


def as_user_error(error: OSError, doing: str) -> Exception:
    """The `UserError` for a full disk, a quota or a refused write; `error` itself for anything else."""
    if error.errno not in _FULL | _NO_PLACE:
        return error
    return UserError(
        f"{doing}: {error.strerror} ({error.filename or 'no file name'}). Nothing was left under a final name; "
        "free some space or choose another --out, then run the same command again: finished units are kept."
    )
