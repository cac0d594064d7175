"""Checkpoints: folders that are either whole or absent, and hold no pickle.

    OUT/checkpoints/step-00000100/
        config.json              the ModelConfig
        model.safetensors        one tensor per parameter, by its name
        optimizer.safetensors    what optim.Optimizer.tensors gives, such as PARAMETER.exp_avg
        state.json               TrainState: step, tokens, position of the loader, what may not change on resume
        manifest.json            size and hash of the four, written last

The first two and the manifest are enough to load a model.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seqmill.errors import UserError, as_user_error
from seqmill.manifest import MANIFEST, OutputFile, open_manifest, write_manifest
from seqmill.models.config import ModelConfig
from seqmill.models.huggingface import huggingface_weights, is_huggingface, load_huggingface, write_tensors
from seqmill.models.training.optim import Optimizer
from seqmill.models.transformer import Model
from seqmill.storage import TEMPORARY_SUFFIX, fingerprint, hash_file, read_json, write_json

KIND = "checkpoint"
CHECKPOINTS = "checkpoints"  # the folder of a run that holds them
TOKENIZER = "tokenizer"  # the folder of a run that texts are read and written with
TOKENIZER_JSON = "tokenizer.json"  # the same in a folder of the HF hub
CONFIG, WEIGHTS, OPTIMIZER, STATE = "config.json", "model.safetensors", "optimizer.safetensors", "state.json"

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainState:
    """Where a run stands after `step` updates; with the tensors it is all that the next update depends on.

    Nothing random happens after the weights are drawn, so there is no generator to keep. Nothing here depends on the
    number of ranks: any other number may go on.
    """

    step: int  # updates done
    tokens: int  # targets that entered a loss so far
    loss_first: float  # nats per target of update 1
    recent_losses: tuple[float, ...]  # of the last updates, oldest first
    loader: Mapping[str, Any]  # PackedDataset.state_dict(): the position of the next batch
    identity: Mapping[str, Any]  # settings and data that must be the same on resume


def load(path: Path | str, device: str = "cpu", dtype: str = "float32") -> Model:
    """The model of a run's newest checkpoint, or a Llama or Qwen3 of the HF hub, ready for `generate` and `score`.

    Args:
        path: the folder of a run (`train`'s `out`), one checkpoint in it, or a HF folder with safetensors.
        device: "cpu", "cuda", or any other torch device.
        dtype: "float32", "bfloat16" or "float16", for the weights.

    Raises:
        UserError: there is no checkpoint, it is damaged, or another program wrote it.
    """
    if Path(path).suffix == ".gguf" and Path(path).is_file():
        raise UserError(f"{path}: a GGUF file is read once: `seqmill import {path} --out DIR`, then name DIR")
    if dtype not in DTYPES:
        raise UserError(f"dtype = {dtype!r}: there is no such type here; choose one of {', '.join(DTYPES)}")
    require_device(device)
    model = load_huggingface(path) if is_huggingface(Path(path)) else _load_ours(_checkpoint_at(Path(path)))
    return model.to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False)


def weight_files(path: Path | str) -> list[Path]:
    """The files that hold the weights of what `load(path)` loads."""
    path = Path(path)
    return huggingface_weights(path) if is_huggingface(path) else [_checkpoint_at(path) / WEIGHTS]


def weights_fingerprint(path: Path | str) -> str:
    """What identifies the weights that `load(path)` loads, wherever they lie. Of a checkpoint it is the hash that its
    manifest lists, which loading compares.

    Raises:
        UserError: there is no checkpoint.
    """
    if is_huggingface(Path(path)):
        return fingerprint([hash_file(file) for file in huggingface_weights(Path(path))])
    folder = _checkpoint_at(Path(path))
    return next((file["xxh3_128"] for file in open_manifest(folder, KIND)["files"] if file["name"] == WEIGHTS), "")


def tokenizer_of(path: Path | str) -> Path | None:
    """The tokenizer that belongs to a run, to one of its checkpoints, or to a folder of the HF hub; None without one.

    A tokenizer that lies beside such a folder by chance is another's.
    """
    path = Path(path)
    run = path.absolute().parents[1] if path.absolute().parent.name == CHECKPOINTS else path
    for found in (path / TOKENIZER, run / TOKENIZER):
        if found.exists():
            return found
    return path if (path / TOKENIZER_JSON).exists() else None


def _load_ours(folder: Path) -> Model:
    config = ModelConfig.from_json(_read_verified_json(folder, CONFIG), str(folder / CONFIG))
    model = Model(config, seed=None)
    _copy_weights(model, _read_tensors(folder, WEIGHTS), folder)
    return model


def require_device(device: str) -> torch.device:
    """The torch device called `device`.

    Raises:
        UserError: torch knows no such device, or sees none.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device = {device!r}: torch knows no such device; choose cpu or cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device = {device!r}: torch {torch.__version__} sees no CUDA device here; use --device cpu, or install "
            "the CUDA build of torch and a driver"
        )
    return found


def newest_checkpoint(out: Path) -> Path | None:
    """The whole checkpoint of run `out` with the most steps, if there is any."""
    whole = _whole_checkpoints(out)
    return whole[-1] if whole else None


@dataclass(frozen=True)
class Snapshot:
    """Copies on the host of all that an update changes."""

    weights: Mapping[str, Tensor]  # by the name of the parameter
    moments: Mapping[str, Tensor]  # Optimizer.tensors()


def snapshot(
    model: Model, optimizer: Optimizer, gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Snapshot:
    """Copy a model and its optimizer as they are now.

    Args:
        gather: gives a tensor with the parts that other ranks hold.
    """

    def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: gather(tensor.detach()).to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }

    return Snapshot(copied(dict(model.named_parameters())), copied(optimizer.tensors()))


class CheckpointWriter:
    """Writes checkpoints in a thread while training goes on, one at a time.

    A checkpoint is on disk when the next one begins, or when the `with` block ends.
    """

    def __init__(self, out: Path, keep_last: int) -> None:
        self._out, self._keep_last = out, keep_last
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:  # else that error is the one to be told
            self._wait()

    def save(self, config: ModelConfig, tensors: Snapshot, state: TrainState) -> None:
        """Begin to write a checkpoint.

        Raises:
            UserError: the one before could not be written.
        """
        self._wait()
        self._pending = self._thread.submit(save_checkpoint, self._out, config, tensors, state, self._keep_last)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()


def save_checkpoint(out: Path, config: ModelConfig, tensors: Snapshot, state: TrainState, keep_last: int) -> Path:
    """Write the checkpoint of `state.step` and delete all but the newest `keep_last`.

    Raises:
        UserError: the disk is full or cannot be written; the older checkpoints are still there.
    """
    final = out / CHECKPOINTS / f"step-{state.step:08d}"
    temporary = final.with_name(f"{final.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        _delete(temporary)
        temporary.mkdir(parents=True)
        write_json(temporary / CONFIG, config.to_json())
        write_tensors(temporary / WEIGHTS, tensors.weights)
        write_tensors(temporary / OPTIMIZER, tensors.moments)
        write_json(temporary / STATE, asdict(state))
        files = [OutputFile.of(temporary, name, rows=1) for name in (CONFIG, WEIGHTS, OPTIMIZER, STATE)]
        write_manifest(temporary, KIND, files)
        _publish(temporary, final)
    except OSError as error:
        raise as_user_error(error, f"writing {final}") from error
    finally:
        _delete(temporary)
    for old in _whole_checkpoints(out)[:-keep_last]:
        _delete(old)
    return final


def load_state(folder: Path) -> TrainState:
    """What `save_checkpoint` was told about the run.

    Raises:
        UserError: the checkpoint is damaged.
    """
    values = _read_verified_json(folder, STATE)
    return TrainState(**{**values, "recent_losses": tuple(values["recent_losses"])})


def restore(
    folder: Path,
    model: Model,
    optimizer: Optimizer,
    step: int,
    put: Callable[[Tensor, Tensor], object] = torch.Tensor.copy_,
) -> None:
    """Put a checkpoint's weights and moments into a model and optimizer of the same shape.

    Args:
        put: fills its first argument, or this rank's part of it, with the second.

    Raises:
        UserError: the checkpoint is damaged.
    """
    _copy_weights(model, _read_tensors(folder, WEIGHTS), folder, put)
    optimizer.restore(_read_tensors(folder, OPTIMIZER), step, put)


def remove_unfinished(out: Path) -> None:
    """Delete what a killed run was writing or deleting. Only the run's single writer may call this."""
    for folder in (out, out / CHECKPOINTS):
        for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _checkpoint_at(path: Path) -> Path:
    if (path / CONFIG).is_file() and (path / MANIFEST).is_file():
        return path
    newest = newest_checkpoint(path)
    if newest is None:
        raise UserError(
            f"{path} holds no checkpoint: neither {CONFIG} and {MANIFEST} nor {CHECKPOINTS}/step-*; "
            "name the --out of `seqmill train` or one of its checkpoints"
        )
    return newest


def _whole_checkpoints(out: Path) -> list[Path]:
    found = (out / CHECKPOINTS).glob("step-????????")
    return sorted(folder for folder in found if (folder / MANIFEST).is_file())


def _read_verified_json(folder: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = read_json(_verified(folder, name))
    return values


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    path = _verified(folder, name)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}); {_WAY_OUT}") from error


_WAY_OUT = "delete this checkpoint and run the same command again to go on from the one before it"


def _verified(folder: Path, name: str) -> Path:
    """The path of a checkpoint's file, once its bytes have the hash that the manifest lists."""
    path = folder / name
    listed = {file["name"]: file for file in open_manifest(folder, KIND)["files"]}
    if name not in listed:
        raise UserError(f"{folder / MANIFEST} lists no {name}, so this checkpoint cannot be used here; {_WAY_OUT}")
    if hash_file(path) != listed[name]["xxh3_128"]:
        raise UserError(f"{path}: its bytes are not those that were written (their hash differs); {_WAY_OUT}")
    return path


@torch.no_grad()
def _copy_weights(
    model: Model,
    tensors: Mapping[str, Tensor],
    folder: Path,
    put: Callable[[Tensor, Tensor], object] = torch.Tensor.copy_,
) -> None:
    parameters = dict(model.named_parameters())
    if set(parameters) != set(tensors):
        odd = sorted(set(parameters) ^ set(tensors))
        raise UserError(
            f"{folder / WEIGHTS} and {CONFIG} beside it describe different architectures: {len(odd)} tensors are in "
            f"one only, such as {odd[0]}; load it with the program that wrote it"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise UserError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(tensors[name].shape)}, but {CONFIG} beside it asks for "
                f"{tuple(parameter.shape)}; the two do not belong together"
            )
        put(parameter, tensors[name])


def _publish(temporary: Path, final: Path) -> None:
    """Give a finished folder its final name; its files are on disk already."""
    _delete(final)
    os.replace(temporary, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(folder: Path) -> None:
    """Delete a folder such that a kill in between leaves it whole or under a temporary name."""
    if not folder.exists():
        return
    doomed = folder
    if folder.suffix != TEMPORARY_SUFFIX:
        doomed = folder.with_name(f"{folder.name}.old{TEMPORARY_SUFFIX}")
        os.replace(folder, doomed)
    shutil.rmtree(doomed)
