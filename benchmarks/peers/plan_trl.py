"""TRL packs rows of tokens, and so it is given tokens: 16-bit zeros in an Arrow table."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from sequences import main


def by(strategy: str) -> Callable[[np.ndarray, int], Callable[[], int]]:
    """One of its strategies, as a variant; a million sequences are given in batches of 100,000."""

    def make(lengths: np.ndarray, capacity: int) -> Callable[[], int]:
        from datasets import Dataset, disable_caching, disable_progress_bars
        from trl import pack_dataset

        disable_caching()
        disable_progress_bars()
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(int(offsets[-1]), np.uint16)))
        dataset = Dataset(pa.table({"input_ids": tokens}))
        return lambda: len(pack_dataset(dataset, capacity, strategy, map_kwargs={"batch_size": 100_000}))

    return make


if __name__ == "__main__":
    main("trl", {strategy: by(strategy) for strategy in ("bfd", "wrapped")})
