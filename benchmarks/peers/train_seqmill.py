"""This project's trainer, driven as its peers are: rows that are full of documents, which see themselves alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from updates import Watch, main

from seqmill.models import TrainConfig, train
from seqmill.models.training.runlog import Record, StepRecord


def packed(work: Path, settings: Mapping[str, Any], watch: Watch) -> None:
    """The updates of `seqmill train`, log and last checkpoint included."""
    shares: list[float] = []

    def hear(record: Record) -> None:
        if isinstance(record, StepRecord):
            watch.tell(record.loss)
            shares.append(record.padding_share or 0.0)

    config = TrainConfig(
        model=settings["model"],
        steps=settings["steps"],
        batch_tokens=settings["batch_tokens"],
        learning_rate=settings["learning_rate"],
        min_lr_ratio=1.0,
        warmup_steps=0,
        betas=tuple(settings["betas"]),
        weight_decay=settings["weight_decay"],
        grad_clip=settings["grad_clip"],
        checkpoint_every=settings["steps"],
        seed=settings["seed"],
        device=watch.device.type,
    )
    train(work / "packed", work / f"run-{watch.device.type}-{id(watch)}", config, hear)
    watch.padding_share = sum(shares) / len(shares)


if __name__ == "__main__":
    main("seqmill", {"packed": packed})
