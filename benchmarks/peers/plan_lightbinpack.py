"""LightBinPack packs lists of integers, by best-fit-decreasing on counts and by a variant in several threads."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sequences import main


def by(name: str) -> Callable[[np.ndarray, int], Callable[[], int]]:
    """One of its functions, as a variant."""

    def make(lengths: np.ndarray, capacity: int) -> Callable[[], int]:
        import lightbinpack

        pack: Any = getattr(lightbinpack, name)
        given = lengths.tolist()
        return lambda: len(pack(given, capacity))

    return make


if __name__ == "__main__":
    main("lightbinpack", {name: by(name) for name in ("obfd", "obfdp")})
