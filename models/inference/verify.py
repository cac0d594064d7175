"""Which drafted tokens the model would have chosen itself."""

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def accepted_path(tokens: Int64s, parents: Int64s | None, picked: Int64s) -> Int64s:
    """int64[1 + accepted]: the tokens of a piece that stay, from the first one down the tree of drafts.

    The first token is known already; `picked[i]` is what the model chooses behind token i. A drafted token stays if it
    follows one that stays and is what the model chose there, so the result is what would have come one by one:

        tokens 5 | 8 9 8    parents -1 0 1 0    picked 8 9 4 .    path 0 1 2: 8 and 9 stay, and 4 is new

    Args:
        parents: the token that each follows; None: the one before it.
    """
    path = [0]
    children: dict[tuple[int, int], int] = {}
    for index in range(len(tokens) - 1, 0, -1):  # of two alike the first one counts
        parent = index - 1 if parents is None else int(parents[index])
        children[parent, int(tokens[index])] = index
    while (following := children.get((path[-1], int(picked[path[-1]])))) is not None:
        path.append(following)
    return np.array(path, np.int64)
