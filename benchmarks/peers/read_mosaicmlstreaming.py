"""mosaicml-streaming: MDS shards of one column of arrays, and its default shuffling."""

from pathlib import Path
from typing import Any

import torch
from batches import BATCH, ROW, SEED, Batches, Reader, main, rows_of

# The torchvision of registries is for CUDA and cannot load its operators beside a torch for processors. These two it
# asks for while it is imported; nothing here calls them.
if torch.version.cuda is None:
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset


def prepare(corpus: Path, data: Path) -> None:
    """A sample is a row."""
    with MDSWriter(out=str(data), columns={"input_ids": f"ndarray:int64:{ROW}"}) as writer:
        for row in rows_of(corpus):
            writer.write({"input_ids": row})


def opened(data: Path, workers: int) -> StreamingDataLoader:
    """Its loader over local shards."""
    dataset = StreamingDataset(local=str(data), shuffle=True, shuffle_seed=SEED, batch_size=BATCH)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)


def begin(data: Path, workers: int) -> Any:
    """The dataset counts epochs itself."""
    loader = opened(data, workers)
    return lambda: loader


def save(data: Path, step: int) -> Any:
    """Its state says epoch and samples."""
    loader = opened(data, 0)
    next(iter(loader))
    epoch, within = divmod(step, len(loader))
    state: Any = loader.state_dict()
    return {**state, "epoch": epoch, "sample_in_epoch": within * BATCH}


def resume(data: Path, state: Any) -> Batches:
    """The batches behind a state."""
    loader = opened(data, 0)
    loader.load_state_dict(state)
    batches: Batches = loader
    return batches


VARIANTS = {"": Reader(begin, save, resume)}

if __name__ == "__main__":
    main("mosaicml-streaming", prepare, VARIANTS)
