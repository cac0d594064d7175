"""A whole run: raw text in, trained model and report out. Run again to do only what is missing.

OUT/config.json   the settings that decide the bytes
OUT/documents     ingest and normalise       OUT/filter      by quality and language, masked    (*)
OUT/dedup         without duplicates         OUT/substrings  without repeated spans             (*)
OUT/traps         with copyright traps (*)   OUT/mix         sources re-counted and shuffled    (*)
OUT/tokenizer     the vocabulary             OUT/tokens      ids per document
OUT/packed        rows for training          OUT/train       checkpoints and log.jsonl
OUT/samples.json  continuations              OUT/report.json

(*) where the configuration has a table for it; the tokenizer and the ids are made of the last folder of documents.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from seqmill.pipeline.config import RunConfig, deciding_settings
from seqmill.pipeline.dedup.stage import dedup
from seqmill.pipeline.execution import Executor, Progress
from seqmill.pipeline.executors import make_executor
from seqmill.pipeline.filters.stage import filter_documents, require_packages
from seqmill.pipeline.ingest import ingest
from seqmill.pipeline.mixing.config import MixConfig
from seqmill.pipeline.mixing.stage import mix
from seqmill.pipeline.model_steps import SAMPLES, generate_samples, read_train_config, sample_config, train_model
from seqmill.pipeline.pack import pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.report import build_report
from seqmill.pipeline.substrings.stage import cut_substrings
from seqmill.pipeline.tokenize import tokenize
from seqmill.pipeline.train_tokenizer import train_tokenizer
from seqmill.pipeline.traps.config import InjectConfig
from seqmill.pipeline.traps.inject import inject
from seqmill.pipeline.traps.table import read_traps
from seqmill.storage import local_folder, only_writer, read_json, write_json

CONFIG = "config.json"
REPORT = "report.json"

# of a documents folder, settings, the folder to write, executor and progress; returns the manifest
DocumentStage = Callable[[Path, Any, Path, Executor, Progress], dict[str, Any]]


def run(config: RunConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Do a whole run and return its report, which is also written to OUT/report.json.

    Raises:
        UserError: the configuration, the input or the machine does not allow it; finished units are kept.
    """
    progress = progress or Silent()
    train_config = None if config.train is None else read_train_config(config.train)
    if config.generate is not None:
        sample_config(config.generate)  # what is wrong is said before any work
    if config.filter is not None:
        require_packages(config.filter)
    if config.traps is not None:
        read_traps(Path(config.traps.file))
    execution = config.execution
    executor = make_executor(execution.executor, execution.workers, execution.address)
    out = local_folder(config.out)
    with only_writer(out):
        clock = _Clock()
        _note_settings(out, deciding_settings(config))
        manifests = _prepare_data(config, out, executor, progress, clock)
        executor.close()
        trained: dict[str, Any] | None = None
        samples: list[dict[str, Any]] | None = None
        if train_config is not None:
            with clock.stage("train"):
                trained = train_model(out / "packed", train_config, out / "train", progress)
        if config.generate is not None:
            with clock.stage("generate"):
                samples = generate_samples(out / "train", config.generate, out)
        report = build_report(Path(config.out), manifests, trained, samples, clock.seconds)
        write_json(out / REPORT, report)
    return report


def _note_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write OUT/config.json; results of other settings go first, so that they never stand beside it."""
    if (out / CONFIG).is_file() and read_json(out / CONFIG) != json.loads(json.dumps(settings)):
        for result in (REPORT, SAMPLES):
            (out / result).unlink(missing_ok=True)
    write_json(out / CONFIG, settings)


def _prepare_data(
    config: RunConfig, out: Path, executor: Executor, progress: Progress, clock: "_Clock"
) -> dict[str, dict[str, Any]]:
    """The stages from raw text to packed rows; returns their manifests by stage."""
    manifests: dict[str, dict[str, Any]] = {}
    documents = out / "documents"
    with clock.stage("ingest"):
        manifests["ingest"] = ingest(config.ingest, config.normalise, documents, executor, progress)
    for name, settings, stage in _document_stages(config):
        with clock.stage(name):
            manifests[name] = stage(documents, settings, out / name, executor, progress)
        documents = out / name
    with clock.stage("tokenizer"):
        train_tokenizer(documents, config.tokenizer, out / "tokenizer", executor, progress)
    with clock.stage("tokenize"):
        manifests["tokenize"] = tokenize(
            documents, out / "tokenizer", config.tokenize, out / "tokens", executor, progress
        )
    with clock.stage("pack"):
        manifests["pack"] = pack(out / "tokens", config.pack, out / "packed", executor, progress)
    return manifests


def _document_stages(config: RunConfig) -> list[tuple[str, Any, DocumentStage]]:
    """The configured stages from documents to documents, in order: name and folder, settings, function."""
    has_dedup = config.dedup.compares or bool(config.dedup.holdout)
    stages: list[tuple[str, Any, DocumentStage]] = [
        ("filter", config.filter, filter_documents),
        ("dedup", config.dedup if has_dedup else None, dedup),
        ("substrings", config.substrings, cut_substrings),
        ("traps", config.traps and config.traps.injection(), partial(_inject, config)),
        ("mix", config.mix, _mix),
    ]
    return [stage for stage in stages if stage[1] is not None]


def _inject(
    config: RunConfig, documents: Path, settings: InjectConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    assert config.traps
    tokenizer = Path(config.tokenizer.path).absolute() if config.tokenizer.path else None
    traps = Path(config.traps.file).absolute()
    return inject(documents, traps, settings, out, executor, progress, tokenizer)


def _mix(documents: Path, settings: MixConfig, out: Path, executor: Executor, progress: Progress) -> dict[str, Any]:
    return mix([documents], settings, out, executor, progress)


class _Clock:
    """Wall seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)
