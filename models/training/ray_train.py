"""The trainer on a Ray cluster, a rank a worker of Ray Train. The only module of models that imports Ray."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.models.training.config import TrainConfig
from seqmill.models.training.job import choose_device
from seqmill.models.training.trainer import TrainResult, train
from seqmill.storage import read_json, write_json

_FOLDER = "ray"  # in OUT while the run goes on: Ray Train's own files, and
_RESULT = "result.json"  # in it: the TrainResult of the first rank


def train_on_ray(packed: Path, out: Path, config: TrainConfig, workers: int) -> TrainResult:
    """`train` by so many ranks at a time, on the cluster that this process is connected to.

    Args:
        packed, out: on a file system that all machines of the cluster share.
        config: of the run; with device "cuda" every rank has a GPU, with "auto" where this machine sees one.
        workers: ranks.

    Raises:
        UserError: as of `train`; or a rank was lost, after which the same call goes on from the newest checkpoint.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    out = out.absolute()
    arguments = {"packed": str(packed.absolute()), "out": str(out), "config": config}
    trainer = TorchTrainer(
        _train_one_rank,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=choose_device(config.device) == "cuda"),
        run_config=RunConfig(storage_path=str(out / _FOLDER)),
    )
    try:
        with plain_errors(out):
            trainer.fit()
        return TrainResult(**read_json(out / _FOLDER / _RESULT))
    finally:
        shutil.rmtree(out / _FOLDER, ignore_errors=True)


def _train_one_rank(arguments: dict[str, Any]) -> None:
    """What every worker runs; Ray Train has made the process group."""
    from ray.train import get_context

    result = train(arguments["packed"], arguments["out"], arguments["config"])
    if get_context().get_world_rank() == 0:
        write_json(Path(arguments["out"]) / _FOLDER / _RESULT, asdict(result))


@contextlib.contextmanager
def plain_errors(out: Path) -> Iterator[None]:
    """A worker's UserError as it was raised there, out of what Ray Train wraps it in."""
    from ray.train import TrainingFailedError

    try:
        yield
    except TrainingFailedError as error:
        failures = [*getattr(error, "worker_failures", {}).values(), error.__cause__]
        for failure in failures:
            if isinstance(failure, UserError):
                raise failure from None
        told = " ".join(str(error).split())
        raise UserError(
            f"training on Ray stopped: {told}; run the same command again to go on from the newest checkpoint in {out}"
        ) from error
