"""What a training run is asked to do, checked before any work."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from seqmill.errors import UserError
from seqmill.models.config import ModelConfig, find_preset, preset_config
from seqmill.models.context_parallel.split import KINDS
from seqmill.models.memory import PLAIN, MemorySettings
from seqmill.models.training.optim import OPTIMIZERS, SCHEDULES
from seqmill.models.training.ranks import PARALLEL

# Settings that say how the same numbers are computed or kept, so a resumed run may have others.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        *("checkpoint_every", "keep_last", "device", "micro_batch_rows", "attention", "memory", "compile"),
        *("parallel", "context_parallel", "context_kind"),
        *("dtype", "plan", "shape", "init"),  # these are compared after they have been resolved
        *("eval_tokens", "eval_every", "eval_bytes", "traps", "injections", "sample_every", "prompts", "tensorboard"),
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run.

    Raises:
        UserError: a value is impossible.
    """

    model: str = "tiny"  # a name in PRESETS
    shape: Mapping[str, Any] = field(default_factory=dict)  # fields of ModelConfig that differ from the preset's
    init: str | None = None  # begin with the weights of a run, a checkpoint or a HF folder; None: with random ones
    steps: int = 1000  # updates
    batch_tokens: int = 8192  # room of one update's rows in tokens; rows = max(1, batch_tokens // row capacity)
    learning_rate: float | None = None  # peak; None: the preset's own
    min_lr_ratio: float = 0.1  # rate of the last update, as a part of the peak
    warmup_steps: int | None = None  # updates of linear warm-up; None: a tenth of the steps, at most 200
    schedule: str = "cosine"  # of the rate after warm-up: a name in optim.SCHEDULES
    decay_share: float = 0.2  # wsd: part of the updates after warm-up in which the rate goes down
    optimizer: str = "adamw"  # or muon, for the matrices of the layers
    weight_decay: float = 0.1  # of matrices
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW
    normalisation: str = "token-mean"  # of the loss: a name in packing.loss_weights.NORMALISATIONS
    z_loss: float = 0.0  # coefficient of log(Z)^2 in the loss (loss.summed_loss); 1e-4 is usual
    balance: float = 0.01  # coefficient of the loss that keeps experts evenly used, where the model has experts
    router_z: float = 0.0  # coefficient of the routers' z-loss, where the model has experts; 1e-3 is usual
    grad_clip: float = 1.0  # largest global gradient norm
    checkpoint_every: int = 100  # updates; the last update always leaves a checkpoint
    keep_last: int = 2  # checkpoints
    seed: int = 0  # of the first weights and of the order of rows
    device: str = "auto"  # auto (CUDA where torch sees it), cpu, cuda
    dtype: str = "auto"  # of matrix products: auto (bfloat16 on CUDA, else float32), float32, bfloat16
    micro_batch_rows: int | None = None  # rows' room per forward pass; None: what suits the device
    attention: str = "auto"  # a name in attention.BACKENDS, or auto
    parallel: str = "ddp"  # of several ranks: ddp, or fsdp for models that do not fit one
    plan: str | None = None  # a file of `seqmill plan`: which rank takes which rows; None: equal parts in order
    context_parallel: int = 1  # ranks that split the tokens of a row among them, for rows too long for one
    context_kind: str = "ring"  # how they do so: a name in context_parallel.KINDS
    memory: MemorySettings = PLAIN  # what layers keep for their gradients
    compile: str = "auto"  # layers and loss by torch.compile, on batches padded to few sizes: auto (on CUDA), on, off
    eval_tokens: str | None = None  # a tokens folder of held-out documents, told in bits per byte by source
    eval_every: int | None = None  # updates between looks at them; None: after the last update alone
    eval_bytes: int | None = 1 << 20  # of their text at most, the same documents for every tokenizer; None: all
    traps: str | None = None  # traps.parquet of `seqmill traps inject`: a second set of documents, by copies
    injections: str | None = None  # injections.parquet of the same: tells the loss on their copies apart
    sample_every: int | None = None  # updates between texts that the model writes; None: after the last, if prompts
    prompts: tuple[str, ...] = ()  # that it continues; none: the beginnings of held-out documents
    tensorboard: bool = False  # show the logs in OUT/tensorboard too

    def __post_init__(self) -> None:
        from seqmill.packing.loss_weights import check_normalisation  # here: models alone need no packed rows

        check_normalisation(self.normalisation)
        find_preset(self.model)
        self._check_shape()
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise UserError(f"{name} = {value}: must be {rule}")
        if self.warmup_steps is not None and self.warmup_steps > self.steps:
            raise UserError(
                f"warmup_steps = {self.warmup_steps} is more than steps = {self.steps}: the rate would never reach its "
                "peak; lower warmup_steps or leave it out"
            )
        if self.eval_every and not (self.eval_tokens or self.traps):
            raise UserError(f"eval_every = {self.eval_every} needs eval_tokens or traps: there is nothing to look at")
        if self.sample_every and not (self.eval_tokens or self.prompts):
            raise UserError(f"sample_every = {self.sample_every} needs eval_tokens or prompts to begin with")

    def _check_shape(self) -> None:
        known = {each.name for each in fields(ModelConfig)} - {"vocab_size"}
        plain = preset_config(self.model, 1)
        for name, value in self.shape.items():
            if name not in known:
                raise UserError(f"shape has {name!r}, which no model has; it takes {', '.join(sorted(known))}")
            kinds = _SHAPE_KINDS.get(name, (type(getattr(plain, name)),))
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise UserError(f"shape {name} = {value!r} is of the wrong type: {wanted} is needed")
        self.model_config(vocab_size=1)

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The shape of the model for a vocabulary of so many ids.

        Raises:
            UserError: no model can have it.
        """
        preset = preset_config(self.model, vocab_size)
        return ModelConfig.from_json({**preset.to_json(), **self.shape}, "shape")

    def evaluates_at(self, step: int) -> bool:
        """Whether the model is shown the held-out documents after this update."""
        return step == self.steps or (self.eval_every is not None and step % self.eval_every == 0)

    def samples_at(self, step: int) -> bool:
        """Whether the model writes texts after this update."""
        if self.sample_every is not None:
            return step == self.steps or step % self.sample_every == 0
        return step == self.steps and bool(self.prompts)

    @property
    def peak_learning_rate(self) -> float:
        """The given rate, else the preset's."""
        return self.learning_rate if self.learning_rate is not None else find_preset(self.model).learning_rate

    @property
    def warmup(self) -> int:
        """The given number of warm-up updates, else a tenth of the steps and at most 200."""
        return self.warmup_steps if self.warmup_steps is not None else min(200, self.steps // 10)


# Fields of ModelConfig whose default tells less than all that they may be.
_SHAPE_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("window", "full_every", "nope_every"), (int,)),
    **dict.fromkeys(("rope_theta", "norm_eps"), (int, float)),
    "rope_scaling": (Mapping,),
}
_POSITIVE: tuple[Callable[[Any], bool], str] = (lambda value: 0 < value < math.inf, "positive and finite")
_AT_LEAST_ZERO: tuple[Callable[[Any], bool], str] = (lambda value: 0 <= value < math.inf, "0 or more")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "steps": _POSITIVE,
    "batch_tokens": _POSITIVE,
    "learning_rate": _POSITIVE,
    "min_lr_ratio": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "warmup_steps": _AT_LEAST_ZERO,
    "schedule": (lambda value: value in SCHEDULES, ", ".join(SCHEDULES)),
    "decay_share": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "optimizer": (lambda value: value in OPTIMIZERS, " or ".join(OPTIMIZERS)),
    "weight_decay": _AT_LEAST_ZERO,
    "z_loss": _AT_LEAST_ZERO,
    "balance": _AT_LEAST_ZERO,
    "router_z": _AT_LEAST_ZERO,
    "context_parallel": _POSITIVE,
    "context_kind": (lambda value: value in KINDS, " or ".join(KINDS)),
    "eval_every": _POSITIVE,
    "eval_bytes": _POSITIVE,
    "sample_every": _POSITIVE,
    "betas": (lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)"),
    "grad_clip": _POSITIVE,
    "checkpoint_every": _POSITIVE,
    "keep_last": (lambda value: value >= 1, "1 or more, since a run resumes from its newest checkpoint"),
    "seed": (lambda value: 0 <= value < 1 << 63, "0 or more, and below 2^63"),
    "device": (lambda value: value in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
    "dtype": (lambda value: value in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
    "micro_batch_rows": _POSITIVE,
    "compile": (lambda value: value in ("auto", "on", "off"), "auto, on or off"),
    "parallel": (lambda value: value in PARALLEL, " or ".join(PARALLEL)),
}
