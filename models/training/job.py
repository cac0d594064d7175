"""A training run with every "auto" resolved, on the machine and the data that it found."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.models.attention import choose_backend, layer_patterns
from seqmill.models.checkpoint import DTYPES, require_device, weights_fingerprint
from seqmill.models.config import ModelConfig
from seqmill.models.training.compiled import INDUCTOR, compiler_obstacle
from seqmill.models.training.config import MAY_CHANGE_ON_RESUME, TrainConfig
from seqmill.models.training.ranks import Ranks

if TYPE_CHECKING:
    from seqmill.packing import BucketSchedule, StepPlan

logger = logging.getLogger(__name__)

_MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}  # on a processor, activations that stay in its cache


@dataclass(frozen=True)
class Job:
    """What is trained on what, by one rank of a run."""

    packed: Path
    config: TrainConfig
    model: ModelConfig
    device: torch.device
    dtype: torch.dtype  # of matrix products; weights and moments are float32
    backend: str  # of attention
    rows: int  # per update and over all ranks, where neither a schedule nor a plan tells
    schedule: "BucketSchedule | None"  # the bucket of every update, for a folder with buckets
    plan: "StepPlan | None"  # which rank takes which row of an update
    micro_batch_tokens: int  # most tokens of one forward pass
    fingerprint: str  # of the packed folder
    tokenizer: str | None  # fingerprint of what made its tokens, where that is known
    init: str | None  # fingerprint of the weights that it begins with; None: random ones, or a folder that is gone
    ranks: Ranks
    compiler: str | None = None  # of layers and loss; None runs them as they are
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds of an attention backend, where they were timed

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON: a checkpoint resumes only into an equal one."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in MAY_CHANGE_ON_RESUME}
        resolved = {
            "betas": list(self.config.betas),
            "learning_rate": self.config.peak_learning_rate,
            "warmup_steps": self.config.warmup,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rows per step": self.rows,
            "packed data": self.fingerprint,
        }
        if self.init is not None:
            resolved["weights of init"] = self.init
        if self.config.normalisation == "rank-token-mean":
            resolved["data ranks"] = self.ranks.size // self.config.context_parallel
        if self.schedule is not None:
            resolved["bucket schedule"] = self.schedule.fingerprint
        if self.plan is not None:
            resolved["step plan"] = self.plan.hash
        shape = {f"model {name}": value for name, value in self.model.to_json().items()}
        return settings | resolved | shape

    @property
    def sharers(self) -> tuple[tuple[int, int], ...]:
        """The (first rank, number of ranks) of all groups that share rows of the plan."""
        if self.plan is None:
            return ()
        spans = set(zip(self.plan.rank.tolist(), self.plan.group.tolist(), strict=True))
        return tuple(sorted(span for span in spans if span[1] > 1))

    def how_it_runs(self) -> dict[str, Any]:
        """What the result does not depend on, for the record."""
        return {
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "attention": self.backend,
            "attention_timings": dict(self.timings),
            "compiler": self.compiler,
            "micro_batch_tokens": self.micro_batch_tokens,
            "parameters": self.model.parameters,
            "ranks": self.ranks.size,
            "mfu": "of real documents: 6 W + 6 L h (s + 1) operations a token (training.flops)",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }


def choose_device(asked: str) -> str:
    """ "cpu" or "cuda", for "auto" what torch sees.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked
    return require_device(chosen).type


def resolve(packed: Path, config: TrainConfig, ranks: Ranks) -> Job:
    """Read the packed folder's manifest and decide every "auto".

    Raises:
        UserError: the folder, the device or the plan is not there, or they do not fit each other.
    """
    if not packed.is_dir():
        raise UserError(f"{packed} is no folder; name the --out of `seqmill pack`")
    manifest = open_manifest(packed, "packed")
    capacity, vocab_size = manifest["pack"]["capacity"], manifest["pack"]["vocab_size"]
    model = config.model_config(vocab_size)
    kind = choose_device(config.device)
    device = torch.device(kind, ranks.local_rank) if kind == "cuda" else torch.device(kind)
    plan = _plan(manifest, config)
    _check_together(config, model, device, ranks, plan)
    auto_dtype = "bfloat16" if kind == "cuda" else "float32"
    dtype = DTYPES[auto_dtype if config.dtype == "auto" else config.dtype]
    micro_rows = config.micro_batch_rows or max(1, _MICRO_BATCH_TOKENS[kind] // capacity)
    return Job(
        packed=packed,
        config=config,
        model=model,
        device=device,
        dtype=dtype,
        backend=choose_backend(config.attention, device, dtype, layer_patterns(model)),
        rows=max(1, config.batch_tokens // capacity),
        schedule=_schedule(packed, manifest, config.batch_tokens),
        plan=plan,
        micro_batch_tokens=micro_rows * capacity,
        fingerprint=manifest["fingerprint"],
        tokenizer=manifest.get("tokenizer", {}).get("fingerprint"),
        init=weights_fingerprint(config.init) if config.init and Path(config.init).exists() else None,
        ranks=ranks,
        compiler=_choose_compiler(config, model, device),
    )


def _choose_compiler(config: TrainConfig, model: ModelConfig, device: torch.device) -> str | None:
    """The compiler of layers and loss, or None to run them as they are.

    Raises:
        UserError: it is asked for, and cannot compile them or anything here.
    """
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return None
    obstacle = None
    if model.experts:
        obstacle = "how many tokens an expert gets is another number in every batch, and code is compiled for numbers"
    elif config.memory.mlp_tile or config.memory.stream_chunk:
        obstacle = "memory.mlp_tile and memory.stream_chunk run a layer in pieces; use memory.checkpoint instead"
    obstacle = obstacle or compiler_obstacle(device)
    if obstacle is None:
        return INDUCTOR
    if config.compile == "on":
        raise UserError(f"compile = 'on': {obstacle}, or set compile = 'off'")
    logger.warning("training without compiled code: %s", obstacle)
    return None


def _check_together(
    config: TrainConfig, model: ModelConfig, device: torch.device, ranks: Ranks, plan: "StepPlan | None"
) -> None:
    """Whether settings that are possible alone are so together.

    Raises:
        UserError: they are not.
    """
    memory = config.memory
    memory.require_possible(device, layer_patterns(model))
    _check_sharing(config, ranks, is_planned=plan is not None and bool((plan.group > 1).any()), model=model)
    if model.experts and (config.balance or config.router_z) and (memory.mlp_tile or memory.stream_chunk):
        raise UserError(
            "memory.mlp_tile and memory.stream_chunk compute layers without a graph, through which the balancing loss "
            "of experts has no gradient; use memory.checkpoint, or set balance = 0 and router_z = 0"
        )


def _check_sharing(config: TrainConfig, ranks: Ranks, is_planned: bool, model: ModelConfig) -> None:
    """Whether ranks can share rows as they are asked to, by the settings or (`is_planned`) by the plan.

    Raises:
        UserError: they cannot.
    """
    context = config.context_parallel
    if ranks.size % context:
        raise UserError(
            f"context_parallel = {context}, and {ranks.size} ranks cannot be divided into such groups; start a "
            f"multiple of {context} ranks, by torchrun or --workers"
        )
    if is_planned and context > 1:
        raise UserError(
            f"context_parallel = {context}, and {config.plan} tells itself which ranks share a row (strategy groups); "
            "leave context_parallel out, or plan with another strategy"
        )
    if is_planned and config.normalisation == "rank-token-mean":
        raise UserError(
            f"normalisation = 'rank-token-mean' takes a mean over the tokens of each rank, and {config.plan} has ranks "
            "share rows (strategy groups); use another normalisation, or plan with another strategy"
        )
    if not (is_planned or context > 1):
        return
    if model.window is not None and config.context_kind == "ring":
        raise UserError(
            "context_kind = 'ring' shows tokens all of their document, and the model has a window; use 'ulysses'"
        )
    if config.memory.stream_chunk:
        raise UserError(
            f"memory.stream_chunk = {config.memory.stream_chunk}: a streamed layer has all tokens of its row, and "
            "ranks share rows (context_parallel, or a plan of strategy groups); use memory.checkpoint instead"
        )


def _schedule(packed: Path, manifest: Mapping[str, Any], batch_tokens: int) -> "BucketSchedule | None":
    """The schedule of a folder with buckets: its updates have room for as many tokens as are asked for."""
    if "schedule" not in manifest:
        return None
    from seqmill.packing import load_schedule

    schedule = load_schedule(packed / manifest["schedule"]["file"])
    if schedule.settings.step_tokens != batch_tokens:
        raise UserError(
            f"batch_tokens = {batch_tokens}, but the schedule of {packed} deals out steps of "
            f"{schedule.settings.step_tokens} tokens: train with batch_tokens = {schedule.settings.step_tokens}, or "
            f"pack again with --step-tokens {batch_tokens}"
        )
    return schedule


def _plan(manifest: Mapping[str, Any], config: TrainConfig) -> "StepPlan | None":
    """The plan that the run is asked to follow: its updates have the rows that are asked for."""
    if config.plan is None:
        return None
    from seqmill.packing import load_step_plan

    plan = load_step_plan(Path(config.plan), manifest["fingerprint"])
    room = plan.settings.rows_per_step * manifest["pack"]["capacity"]
    if room != config.batch_tokens:
        raise UserError(
            f"batch_tokens = {config.batch_tokens}, but {config.plan} plans steps with room for {room} tokens "
            f"({plan.settings.rows_per_step} rows); train with batch_tokens = {room}, or plan again with other --rows"
        )
    return plan
