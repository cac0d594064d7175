"""What every driver of a trainer does: the same updates of the same weights by the same documents, and what they cost.

    python train_PEER.py describe OUT                      version, names of its variants
    python train_PEER.py train OUT VARIANT WORK DEVICE     losses, seconds, padding share, most bytes at once

WORK is a folder:

    work.json        steps, warm_up, batch_tokens, learning_rate, betas, weight_decay, grad_clip, model, seed
    weights/         the first weights as a model of transformers
    packed/          the documents in rows, for those who read them
    documents.npz    the same as arrays: tokens, and lengths (tokens of each document), rows (documents of each row),
                     updates (rows of each update), in the order of the updates

The rate is the same in all updates. Losses are in nats per target. Seconds are those of updates warm_up + 1 to
steps - 1: of the processor where a single thread works, so that it does not matter who else is busy, else of the clock.
Weights are in float32; on a GPU products are in bfloat16.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import answer
from steps import peak_bytes, seconds_now

Document = list[int]


@dataclass
class Watch:
    """Hears of every update as soon as it is done."""

    device: torch.device
    warm_up: int  # first updates, which are not timed
    losses: list[float] = field(default_factory=list)
    marks: list[float] = field(default_factory=list)  # seconds
    padding_share: float = 0.0  # of the places that went through the model

    def tell(self, loss: float) -> None:
        """An update is done, and this was the loss before it."""
        self.marks.append(seconds_now(self.device))
        self.losses.append(loss)

    def result(self) -> dict[str, Any]:
        """What the driver answers. The last update is not timed: some write a checkpoint before they tell of it."""
        return {
            "losses": self.losses,
            "seconds": self.marks[-2] - self.marks[self.warm_up - 1],
            "padding_share": self.padding_share,
            "peak_bytes": peak_bytes(self.device),
            "threads": torch.get_num_threads(),
        }


Variant = Callable[[Path, Mapping[str, Any], Watch], None]  # (WORK, its work.json, who hears of the updates)


def main(package: str, variants: Mapping[str, Variant]) -> None:
    """Do the task that the command line names."""

    def task(_out: Path, name: str, work: str, device: str) -> dict[str, Any]:
        return trained(variants[name], Path(work), torch.device(device))

    answer(package, {"train": task}, variants=list(variants))


def trained(variant: Variant, work: Path, device: torch.device) -> dict[str, Any]:
    """All updates, and what they came to."""
    settings = json.loads((work / "work.json").read_text())
    watch = Watch(device, settings["warm_up"])
    variant(work, settings, watch)
    return watch.result()


def read_updates(work: Path) -> Iterator[list[list[Document]]]:
    """The rows of every update, each a list of documents."""
    with np.load(work / "documents.npz") as arrays:
        tokens, lengths, rows, updates = (arrays[name] for name in ("tokens", "lengths", "rows", "updates"))
    documents = [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]
    of_row = np.split(np.arange(len(documents)), np.cumsum(rows)[:-1])
    for places in np.split(np.arange(len(rows)), np.cumsum(updates)[:-1]):
        yield [[documents[place] for place in of_row[row]] for row in places]
