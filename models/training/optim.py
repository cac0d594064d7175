"""The optimizers, AdamW and Muon, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from seqmill.models.config import ModelConfig
from seqmill.models.training.sharing import gathered, part_of
from seqmill.models.transformer import Model

OPTIMIZERS = ("adamw", "muon")
_EPS = 1e-8
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state; its own count of steps is the run's
_MOMENTUM = 0.95  # Muon's
_QUINTIC = (3.4445, -4.775, 2.0315)  # Muon's polynomial: it takes singular values to about 1 in five steps


class Optimizer:
    """AdamW over a model's parameters; or Muon over the matrices of its layers, and AdamW over the rest.

    Matrices decay, scales (1-D parameters) do not. Muon makes each update of a matrix orthogonal and scales it to the
    root mean square that AdamW's usually has (Moonlight, arXiv 2502.16982, section 2.2), so one learning rate serves
    both. q, k and v share a matrix, and so do gate and up: each is made orthogonal by itself. Experts lie in one 3-D
    parameter, [experts, outputs, inputs], and each is a matrix, or two, of its own; a router is a matrix like others.
    """

    def __init__(self, model: Model, kind: str, betas: tuple[float, float], weight_decay: float) -> None:
        """`kind` is one of OPTIMIZERS; `betas` are AdamW's."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        by_muon = {name for name in named if kind == "muon" and _is_matrix_of_layer(name, named[name])}
        self._by_adamw = {name: parameter for name, parameter in named.items() if name not in by_muon}
        self._by_muon = {name: named[name] for name in named if name in by_muon}
        self._parts = {name: _parts_of(name, model.config) for name in self._by_muon}
        self._momenta = {name: torch.zeros_like(named[name], requires_grad=False) for name in self._by_muon}
        self._weight_decay = weight_decay
        groups = [
            {"params": [p for p in self._by_adamw.values() if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self._by_adamw.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=_EPS, fused=True)

    def step(self, rate: float) -> None:
        """Move all weights along their gradients at this learning rate, and forget the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        for name, parameter in self._by_muon.items():
            if parameter.grad is not None:
                _muon_step(parameter, self._momenta[name], self._parts[name], rate, self._weight_decay)
                parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """What the next step depends on besides weights, gradients and rate: `PARAMETER.exp_avg`, for example."""
        of_adamw = {
            f"{name}.{key}": self._adamw.state[parameter][key]
            for name, parameter in self._by_adamw.items()
            for key in _MOMENTS
        }
        return of_adamw | {f"{name}.momentum": momentum for name, momentum in self._momenta.items()}

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        step: int,
        put: Callable[[Tensor, Tensor], object] = torch.Tensor.copy_,
    ) -> None:
        """Put back what `tensors` gave after update `step`; `put` fills its first argument with the second.

        Raises:
            KeyError: one is missing.
        """
        for name, parameter in self._by_adamw.items():
            moments = {key: torch.empty_like(parameter, requires_grad=False) for key in _MOMENTS}
            for key, moment in moments.items():
                put(moment, tensors[f"{name}.{key}"])
            count = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
            self._adamw.state[parameter] = {"step": count, **moments}
        for name, momentum in self._momenta.items():
            put(momentum, tensors[f"{name}.momentum"])


def _is_matrix_of_layer(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and name.startswith("blocks.")


def _parts_of(name: str, config: ModelConfig) -> list[int]:
    """The rows of each matrix that lies in the parameter `name` (in each expert, where it has experts); none for one
    that is a single matrix."""
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {"qkv": [query, key, key], "gate_up": [config.ffn_dim, config.ffn_dim]}
    return sizes.get(name.split(".")[-2], [])


@torch.no_grad()
def _muon_step(
    parameter: nn.Parameter, momentum: Tensor, parts: Sequence[int], rate: float, weight_decay: float
) -> None:
    """Nesterov momentum, made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""
    assert parameter.grad is not None
    momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
    update = gathered(parameter.grad.lerp(momentum, _MOMENTUM))  # ranks that share a matrix all make it orthogonal
    matrices = update.split(parts, dim=-2) if parts else [update]
    made = [orthogonalise(matrix) * (0.2 * math.sqrt(max(matrix.shape[-2:]))) for matrix in matrices]
    parameter.mul_(1 - rate * weight_decay).sub_(part_of(torch.cat(made, dim=-2), parameter), alpha=rate)


def orthogonalise(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors whose singular values are all about 1, from 0.7 to 1.2; or a stack of
    such matrices [matrices, rows, columns].

    torch.optim.Muon multiplies in bfloat16 everywhere; processors without such a unit are a hundred times slower in
    it than in float32, which is used there.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x  # the smaller gram matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    first, third, fifth = _QUINTIC
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(5):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return (x.mT if is_tall else x).to(matrix.dtype)


def _cosine(progress: float, decay_share: float) -> float:
    del decay_share
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float, decay_share: float) -> float:
    del decay_share
    return 1 - progress


def _warmup_stable_decay(progress: float, decay_share: float) -> float:
    return min(1.0, (1 - progress) / decay_share)


# (part of the updates after warm-up that are done, part of them that decays) -> 1 at the peak, 0 at the least rate
SCHEDULES: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {"cosine": _cosine, "linear": _linear, "wsd": _warmup_stable_decay}
)


def learning_rate(
    step: int,
    steps: int,
    warmup_steps: int,
    peak: float,
    min_ratio: float,
    schedule: str = "cosine",
    decay_share: float = 0.2,
) -> float:
    """The rate of update `step`, counted from 1: a straight line up to `peak`, then down as the schedule says.

    Update `warmup_steps` has the peak, update `steps` has `min_ratio * peak`. In between "cosine" is half a cosine,
    "linear" a straight line, and "wsd" stays at the peak and goes down in a straight line in the last `decay_share` of
    these updates (MiniCPM, arXiv 2404.06395, section 4).
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return peak * (min_ratio + (1 - min_ratio) * SCHEDULES[schedule](progress, decay_share))
