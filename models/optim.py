"""AdamW over a model's parameters, and the learning rate as a function of the step."""

import math

import torch
from torch import Tensor, nn


def adamw(model: nn.Module, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves scales (1-D parameters) alone; the trainer sets the rate at every step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next update use `rate` for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, min_ratio: float) -> float:
    """The rate of update `step`, counted from 1: a straight line up to `peak`, then half a cosine down.

    Update `warmup_steps` has the peak, update `steps` has `min_ratio * peak`.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Both moments of every parameter, as `PARAMETER.exp_avg` and `PARAMETER.exp_avg_sq`."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], step: int
) -> None:
    """Put back what `optimizer_tensors` took after update `step`."""
    for name, parameter in model.named_parameters():
        moments = {key: torch.empty_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        for key, moment in moments.items():
            moment.copy_(tensors[f"{name}.{key}"])
        count = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = {"step": count, **moments}
