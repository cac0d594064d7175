"""Which backend trains: asked for by name, or the fastest on a batch as it comes, timed once at the start.

None is the fastest at all shapes and on all cards, and what a version of torch calls underneath changes (pytorch issue
187770 tells of 280 thousand tokens a second that became 60). So the choice is measured, and logged with its timings.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention.backends import candidates, choose_backend, prepare
from seqmill.models.attention.pattern import FULL, Pattern, layer_patterns
from seqmill.models.attention.segments import Segments
from seqmill.models.config import ModelConfig

_WARM_UPS, _REPEATS = 2, 5  # calls before timing (the first compiles), and timed calls, of which the median counts

Timer = Callable[[Callable[[], None], torch.device], float]
"""(call, device) -> seconds that one call takes."""


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and why."""

    backend: str  # a name in BACKENDS
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds of a forward and backward pass, where timed
    failures: Mapping[str, str] = field(default_factory=dict)  # what candidates that did not run said


def seconds_of(call: Callable[[], None], device: torch.device) -> float:
    """Seconds that a call takes when it is warm: the median of several, each until the device has finished."""
    seconds = []
    for _ in range(_WARM_UPS + _REPEATS):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[_WARM_UPS:])


def choose_by_time(
    q_THE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    segments: Segments,
    backends: Sequence[str],
    patterns: Sequence[Pattern] = (FULL,),
    timer: Timer = seconds_of,
) -> Choice:
    """The backend that takes the least time for a forward and a backward pass over these documents.

    Args:
        patterns: of all layers. Each different one is timed, and counts as often as it occurs.

    Raises:
        UserError: none of the backends runs.
    """
    timings: dict[str, float] = {}
    failures: dict[str, str] = {}
    for backend in backends:
        try:
            timings[backend] = sum(
                layers * timer(partial(_pass, q_THE, k_TKE, v_TKE, segments, backend, pattern), q_THE.device)
                for pattern, layers in Counter(patterns).items()
            )
        except (UserError, RuntimeError) as error:  # a kernel that is not there, does not compile or takes too much
            failures[backend] = str(error).partition("\n")[0]
    if not timings:
        raise UserError(f"no attention backend runs on {q_THE.device} in {q_THE.dtype} ({failures}); train on the cpu")
    return Choice(min(timings, key=lambda backend: timings[backend]), timings, failures)


def choose_for_batch(
    asked: str,
    config: ModelConfig,
    segments: Segments,
    dtype: torch.dtype,
    *,
    always_even: bool = False,
    timer: Timer = seconds_of,
) -> Choice:
    """The backend to train a model with: `asked`, or for "auto" the fastest on a batch with these documents.

    On a processor, or where one candidate alone can run, nothing is timed.

    Args:
        asked: a name in `BACKENDS`, or auto.
        segments: of the first micro-batch, on the device that trains.
        dtype: of the queries, keys and values.
        always_even: whether all documents of a batch have one length, in every batch (a folder with buckets).

    Raises:
        UserError: the backend asked for cannot run here, or none runs.
    """
    device, patterns = segments.cu_seqlens.device, layer_patterns(config)
    if asked != "auto":
        return Choice(choose_backend(asked, device, dtype, patterns))
    backends = candidates(device, dtype, patterns, always_even=always_even)
    if len(backends) == 1:
        return Choice(backends[0])
    generator = torch.Generator(device).manual_seed(0)
    q_THE, k_TKE, v_TKE = (
        torch.randn(sum(segments.lengths), heads, config.head_dim, generator=generator, device=device, dtype=dtype)
        for heads in (config.heads, config.kv_heads, config.kv_heads)
    )
    return choose_by_time(q_THE, k_TKE, v_TKE, segments, backends, patterns, timer)


def _pass(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, segments: Segments, backend: str, pattern: Pattern) -> None:
    """One forward and one backward pass of one layer."""
    parts = [x.detach().requires_grad_() for x in (q_THE, k_TKE, v_TKE)]
    out_THE = prepare(segments, pattern, backend)(*parts)
    torch.autograd.grad(out_THE, parts, torch.ones_like(out_THE))
