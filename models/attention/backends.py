"""One function of (q, k, v, segments) before all backends, and what each of them can do."""
# ruff: noqa: N803 (the axes are capital letters)

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention.dense import Prepared, prepare_dense
from seqmill.models.attention.flex import prepare_flex
from seqmill.models.attention.pattern import FULL, Pattern
from seqmill.models.attention.segments import Segments
from seqmill.models.attention.varlen import prepare_varlen, varlen_obstacle

BACKENDS: Mapping[str, Callable[[Segments, Pattern], Prepared]] = MappingProxyType(
    {"sdpa": prepare_dense, "flex": prepare_flex, "varlen": prepare_varlen}
)


def prepare(segments: Segments, pattern: Pattern, backend: str) -> Prepared:
    """What `attend` does for these documents, as a function (q_THE, k_TKE, v_TKE) -> out_THE.

    Everything that depends on where the documents lie is computed here, outside of compiled code, and once: the layers
    of a model share what is prepared, one for each pattern of theirs, and it goes when the segments go.
    """
    key = pattern, backend
    if key not in segments.prepared:
        segments.prepared[key] = BACKENDS[backend](segments, pattern)
    return segments.prepared[key]


def attend(
    q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, segments: Segments, backend: str, pattern: Pattern = FULL
) -> Tensor:
    """Let every token attend to itself and to those before it in its own document that `pattern` lets it see.

    Args:
        segments: of the T tokens, on the same device.
        backend: a name in `BACKENDS`, as `choose_backend` returns it.

    Returns:
        out_THE. A document's rows depend on no other document's contents, to the last bit.

    Raises:
        UserError: the backend would have to hold the scores of all pairs of more than 1,024 tokens.
    """
    return prepare(segments, pattern, backend)(q_THE, k_TKE, v_TKE)


def choose_backend(
    backend: str, device: torch.device, dtype: torch.dtype, patterns: Collection[Pattern] = (FULL,)
) -> str:
    """The backend to run: `backend` itself, or for "auto" one that suits this device and type at any lengths.

    Nothing is timed here; `choose_for_batch` does that for training.

    Raises:
        UserError: there is no such backend, or it cannot run here.
    """
    if backend == "auto":
        return "sdpa" if _obstacle("varlen", device, dtype, patterns) else "varlen"
    if backend not in BACKENDS:
        raise UserError(f"attention = {backend!r}: there is no such backend; choose auto, {', '.join(BACKENDS)}")
    if obstacle := _obstacle(backend, device, dtype, patterns):
        raise UserError(f"attention = {backend!r} {obstacle}; use attention = 'auto'")
    return backend


def candidates(
    device: torch.device, dtype: torch.dtype, patterns: Collection[Pattern] = (FULL,), *, always_even: bool = False
) -> tuple[str, ...]:
    """The backends that may be the fastest here, likeliest first.

    Args:
        always_even: whether all documents of a batch have one length, in every batch (a folder with buckets).
    """
    if device.type != "cuda":
        return ("sdpa",)
    names = [name for name in ("varlen", "flex") if not _obstacle(name, device, dtype, patterns)]
    return (*names, *(["sdpa"] if always_even or not names else []))


def _obstacle(backend: str, device: torch.device, dtype: torch.dtype, patterns: Collection[Pattern]) -> str | None:
    """Why a backend cannot run so; None where it can."""
    if backend != "varlen":
        return None
    return next(filter(None, (varlen_obstacle(device, dtype, pattern) for pattern in patterns)), None)
