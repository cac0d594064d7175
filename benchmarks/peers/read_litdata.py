"""litdata: chunks of tokens, read in rows by its TokensLoader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from batches import BATCH, ROW, SEED, Batches, Reader, main, rows_of, skip
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

CHUNK = 512 * ROW  # tokens: 8 MiB


def tokens_of(corpus: str) -> Iterator[torch.Tensor]:
    """The rows, one by one."""
    for row in rows_of(Path(corpus)):
        yield torch.from_numpy(row)


def prepare(corpus: Path, data: Path) -> None:
    """Optimize, by one worker."""
    loader = TokensLoader(block_size=ROW)
    optimize(tokens_of, [str(corpus)], str(data), chunk_size=CHUNK, num_workers=1, item_loader=loader, verbose=False)


def opened(data: Path, workers: int) -> StreamingDataLoader:
    """Its loader with its shuffling."""
    dataset = StreamingDataset(str(data), item_loader=TokensLoader(block_size=ROW), shuffle=True, seed=SEED)
    return StreamingDataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def begin(data: Path, workers: int) -> Any:
    """The loader counts epochs itself."""
    loader = opened(data, workers)
    return lambda: loader


def save(data: Path, step: int) -> Any:
    """Only reading tells the state; it is that of the first epoch, with another epoch's number put in."""
    loader = opened(data, 0)
    epoch, within = divmod(step, len(loader))
    skip(loader, within)
    state = loader.state_dict()
    state["current_epoch"] += epoch
    state["dataset"]["current_epoch"] += epoch
    return state


def resume(data: Path, state: Any) -> Batches:
    """The batches behind a state."""
    loader = opened(data, 0)
    loader.load_state_dict(state)
    batches: Batches = loader
    return batches


VARIANTS = {"": Reader(begin, save, resume)}

if __name__ == "__main__":
    main("litdata", prepare, VARIANTS)
