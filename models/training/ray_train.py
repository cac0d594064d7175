"""The trainer on a Ray cluster, a rank a worker of Ray Train. The only module of models that imports Ray."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.models.training.config import TrainConfig
from seqmill.models.training.job import choose_device
from seqmill.models.training.journal import Listener
from seqmill.models.training.trainer import TrainResult, train
from seqmill.storage import read_json, write_json

_FOLDER = "ray"  # in OUT while the run goes on: Ray Train's own files, and
_PATHS = ("init", "plan", "eval_tokens", "traps", "injections")  # fields of TrainConfig
_RESULT = "result.json"  # in it: the TrainResult of the first rank


def train_on_ray(
    packed: Path, out: Path, config: TrainConfig, workers: int, progress: Listener | None = None
) -> TrainResult:
    """`train` by so many ranks at a time, on the cluster that this process is connected to.

    Args:
        packed, out: on a file system that all machines of the cluster share.
        config: of the run; with device "cuda" every rank has a GPU, with "auto" where this machine sees one.
        workers: ranks.
        progress: is told every record as it is logged, in a thread of this process.

    Raises:
        UserError: as of `train`; or a rank was lost, after which the same call goes on from the newest checkpoint.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    out = out.absolute()
    with _heard(progress) as records:
        arguments = {"packed": str(packed.absolute()), "out": str(out), "config": _absolute(config), "records": records}
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


@contextlib.contextmanager
def _heard(progress: Listener | None) -> Iterator[Any]:
    """A queue that workers put records into, each of which `progress` is told; None where nobody listens."""
    if progress is None:
        yield None
        return
    from ray.exceptions import RayError
    from ray.util.queue import Queue

    records = Queue(actor_options={"num_cpus": 0})
    is_lost = contextlib.suppress(RayError)  # with the machine that has the queue; then the workers tell what happened

    def listen() -> None:
        with is_lost:
            while (record := records.get()) is not None:
                progress(record)

    listener = threading.Thread(target=listen, name="progress")
    listener.start()
    try:
        yield records
    finally:
        with is_lost:
            records.put(None)
        listener.join()
        records.shutdown()


def _absolute(config: TrainConfig) -> TrainConfig:
    """The config with paths that mean the same in the working directory of a worker."""
    given = {name: getattr(config, name) for name in _PATHS}
    absolute: dict[str, Any] = {name: str(Path(path).absolute()) for name, path in given.items() if path is not None}
    return replace(config, **absolute)


def _train_one_rank(arguments: dict[str, Any]) -> None:
    """What every worker runs; Ray Train has made the process group."""
    from ray.train import get_context

    records = arguments["records"]
    tell = None if records is None else records.put
    result = train(arguments["packed"], arguments["out"], arguments["config"], tell)
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
