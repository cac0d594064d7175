"""The longest document that a GiB trains on, for every way to keep less for the gradients, and what the way costs.

    plain                       everything is kept, all logits at once
    chunked loss                logits a chunk at a time; so do all ways below
    tiled mlp                   SwiGLU a tile of tokens at a time
    keep attention              a layer's input and what attention found
    layer                       a layer's input
    streamed                    a layer's input, and on the way back no more than a chunk of a layer (StreamBP)
    ... + offload               what layers keep lies in the host's memory; CUDA only

Each point is one forward and backward pass over one document of random tokens, in a process of its own. Memory is the
most that the process had resident on the CPU, or that torch's allocator had handed out on CUDA. It is measured at two
lengths, and tokens per GiB are taken from the difference, so weights, gradients and the interpreter do not count. On
the CPU one core works, and its own time counts, whoever else is busy. The peer is the Llama of transformers in the same
shape; its "layer" is gradient checkpointing.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seqmill.models.config import find_preset

from .support.arguments import require_known
from .support.devices import require_measured
from .support.peers import DECODERS, OURS, PeerError, System, described, system_of
from .support.rows import Row, row

GIB = 1 << 30
LENGTHS = {"cpu": (2048, 6144), "cuda": (16_384, 49_152)}  # tokens
MODELS = {"cpu": "tiny", "cuda": "124m"}
VOCABULARY = {"cpu": 8192, "cuda": 50_257}
ON_HOST = (
    "plain",
    "chunked loss",
    "tiled mlp",
    "keep attention",
    "keep attention + tiled mlp",
    "layer",
    "layer + tiled mlp",
    "streamed",
)
ON_CUDA = (*ON_HOST, "keep attention + offload", "layer + offload", "layer + tiled mlp + offload", "streamed + offload")
CASES = {"cpu": ON_HOST, "cuda": ON_CUDA}
SHAPE = ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn_dim")


def run(
    cases: Sequence[str] = (),
    device: str = "cpu",
    model: str | None = None,
    peers: Sequence[str] = DECODERS,
) -> dict[str, Any]:
    """Rows of the chosen ways, and notes on what could not be measured.

    Args:
        cases: the ways above; default: all that the device can do.
        device: "cpu" or "cuda".
        model: a preset; default: a small one on the CPU, 124m on CUDA.
        peers: of `DECODERS`.

    Raises:
        UserError: a case, peer, preset or device that does not exist.
    """
    require_measured(device, LENGTHS, "memory is")
    require_known(cases, CASES[device], f"case on {device}")
    require_known(peers, DECODERS, "peer")
    preset = model or MODELS[device]
    found = find_preset(preset).model
    shape = json.dumps({"vocab_size": VOCABULARY[device], **{name: getattr(found, name) for name in SHAPE}})
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        systems = list(_systems(scratch, peers, notes))
        for case in cases or CASES[device]:
            for system, label, ways in systems:
                if case not in ways:
                    continue
                try:
                    rows += _measured(system, scratch, f"{preset}, {case}", label, case, device, shape)
                except PeerError as error:
                    notes.append(f"{case}: {error}")
    return {"rows": rows, "notes": notes}


def _systems(scratch: Path, peers: Sequence[str], notes: list[str]) -> Iterator[tuple[System, str, Sequence[str]]]:
    """Each system that is there, how it is shown, and its ways; ours first."""
    yield system_of(OURS, "step"), OURS, ON_CUDA
    for system, told in described(peers, "step", scratch, notes):
        yield system, f"{system.name} {told['version']}", told["variants"]


def _measured(
    system: System, scratch: Path, shown: str, label: str, way: str, device: str, shape: str
) -> Iterator[Row]:
    """Tokens per GiB between the two lengths, and the time of a token at the longer one.

    Raises:
        PeerError: a step failed, or the longer document needed no more memory, so that nothing can be told.
    """
    few, many = LENGTHS[device]
    folder = scratch / f"{system.name}-{way.replace(' ', '-')}"
    short, long = (
        system.ask(folder.with_name(f"{folder.name}-{tokens}"), "step", way, tokens, device, shape).result
        for tokens in (few, many)
    )
    grown = long["peak_bytes"] - short["peak_bytes"]
    if grown <= 0:
        raise PeerError(f"{label}: {many} tokens needed no more memory than {few}")
    yield row(f"{shown}: longest document", label, (many - few) * GIB / grown, "tokens/GiB", True)
    yield row(f"{shown}: time", label, 1e6 * long["seconds"] / many, "us/token", False)
