"""Looks at a model between updates: what it needs to tell held-out documents and traps, and what it writes."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.models.checkpoint import TOKENIZER
from seqmill.models.evaluation import EvaluationConfig, HeldOut, evaluate, gather_losses
from seqmill.models.evaluation.traps import TrapTokens, trap_groups
from seqmill.models.samples import SampleConfig, check_prompts, sample_beginnings, sample_texts
from seqmill.models.training.job import Job
from seqmill.models.training.runlog import EvaluationRecord, Record, SampleRecord
from seqmill.models.training.sharing import gathered
from seqmill.models.transformer import Model

if TYPE_CHECKING:
    from seqmill.tokenizers_ext import Encoder


@dataclass(frozen=True)
class Looks:
    """What there is to look at; nothing by default."""

    job: Job
    sets: dict[str, HeldOut]  # by name: "holdout", "traps"
    encoder: "Encoder | None"  # for texts
    trap_tokens: TrapTokens | None  # which targets of the training rows are of a trap's copy

    @classmethod
    def of(cls, job: Job) -> "Looks":
        """Open what the settings name.

        Raises:
            UserError: it is not there, or of another tokenizer.
        """
        config, manifest = job.config, open_manifest(job.packed, "packed")
        tokenizer = job.packed / TOKENIZER
        windows = EvaluationConfig(max_bytes=config.eval_bytes, context=manifest["pack"]["capacity"])
        sets = {}
        if config.eval_tokens is not None:
            sets["holdout"] = HeldOut.open(config.eval_tokens, windows, job.tokenizer)
        if config.traps is not None:
            every_trap = EvaluationConfig(context=windows.context)
            sets["traps"] = trap_groups(config.traps, _needed(tokenizer, "traps"), every_trap)
        encoder = None
        if config.sample_every or config.prompts:
            encoder = _load_encoder(_needed(tokenizer, "prompts" if config.prompts else "sample_every"))
            check_prompts(encoder, config.prompts)
        found = None if config.injections is None else TrapTokens.find(job.packed, config.injections)
        return cls(job, sets, encoder, found)

    def after(
        self, step: int, model: Model, tokens: int, began: float, left_out: Collection[str] = ()
    ) -> Iterator[Record]:
        """The records that are due after an update; all ranks call this together, and the first one has the samples.

        Args:
            tokens: targets of all updates so far.
            began: when this process began, by time.perf_counter.
            left_out: names of sets, and "samples", that are not due.
        """
        config = self.job.config
        if config.evaluates_at(step):
            for name in (name for name in self.sets if name not in left_out):
                losses = self._evaluate(model, self.sets[name])
                yield EvaluationRecord.of(step, name, tokens, time.perf_counter() - began, losses)
        if self.encoder is not None and config.samples_at(step) and "samples" not in left_out:
            here = _gathered_model(model, self.job.ranks.is_first) if config.parallel == "fsdp" else model
            if self.job.ranks.is_first:
                for sample in self._sample(here, self.encoder):
                    yield SampleRecord(step, sample.prompt, sample.continuation)

    def _evaluate(self, model: Model, held_out: HeldOut) -> Any:
        job = self.job
        shares = {"rank": job.ranks.rank, "world_size": job.ranks.size}
        share = evaluate(model, held_out, **shares, dtype=job.dtype, backend=job.backend)
        return gather_losses(share, job.device) if job.ranks.size > 1 else share

    def _sample(self, model: Model, encoder: "Encoder") -> Any:
        settings = SampleConfig(seed=self.job.config.seed)
        if self.job.config.prompts:
            return sample_texts(model, encoder, self.job.config.prompts, settings)
        return sample_beginnings(model, encoder, self.sets["holdout"], settings)


def _needed(tokenizer: Path, purpose: str) -> Path:
    if not tokenizer.is_dir():
        raise UserError(
            f"{purpose} needs a tokenizer for texts, and {tokenizer} is not there; pack tokens again that a tokenizer "
            f"made, or leave {purpose} out"
        )
    return tokenizer


def _load_encoder(tokenizer: Path) -> "Encoder":
    from seqmill.tokenizers_ext import load  # here: training alone needs no tokenizer

    return load(tokenizer)


@torch.no_grad()
def _gathered_model(model: Model, keep: bool) -> Model:
    """A copy of a model of which this rank has a part, where it is kept; all ranks call this together."""
    copy = Model(model.config, None).to(model.device) if keep else model
    for name, parameter in model.named_parameters():
        value = gathered(parameter)
        if keep:
            copy.get_parameter(name).copy_(value)
    return copy
