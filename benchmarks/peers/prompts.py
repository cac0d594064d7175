"""What every driver of generation does: the same prompts through the same weights, and what the first tokens cost.

    python prefill_PEER.py describe OUT                        version, names of its variants
    python prefill_PEER.py generate OUT VARIANT WORK DEVICE    tokens, seconds, seconds to each first token, most bytes

WORK is a folder:

    work.json      weights (the folder of a model of transformers), new_tokens (of each prompt), batch (prompts that go
                   through padded together)
    prompts.npz    tokens, and lengths (tokens of each prompt)

Weights are in float32 on a processor and in bfloat16 on a GPU; the likeliest token comes next, and none ends a text.
Seconds begin when all prompts are handed over, after a few short ones have loaded what is loaded once. They are those
of the processor where a single thread works, so that it does not matter who else is busy, else of the clock. Bytes are
the most since then, weights and the interpreter included.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import answer
from steps import peak_bytes, seconds_now

Prompt = list[int]
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
WARM_UP = (4, 40)  # prompts, and tokens of each at most


@dataclass
class Watch:
    """Hears of first tokens as they come."""

    device: torch.device
    places: int = 0  # of prompts and padding that went through the model
    began: float = field(init=False)
    first: dict[int, float] = field(default_factory=dict)  # request -> seconds

    def __post_init__(self) -> None:
        self.began = self.now()

    def now(self) -> float:
        """Seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return seconds_now(self.device)

    def tell(self, requests: Sequence[int]) -> None:
        """These requests have a new token."""
        if news := [request for request in requests if request not in self.first]:
            self.first.update(dict.fromkeys(news, self.now() - self.began))


Generate = Callable[[Sequence[Prompt], int, Watch], list[list[int]]]  # (prompts, new tokens of each, who hears of them)
Variant = Callable[[Path, Mapping[str, Any], torch.device], Generate]  # loads (weights, work.json, device)


def main(package: str, variants: Mapping[str, Variant]) -> None:
    """Do the task that the command line names."""

    def task(_out: Path, name: str, work: str, device: str) -> dict[str, Any]:
        return generated(variants[name], Path(work), torch.device(device))

    answer(package, {"generate": task}, variants=list(variants))


def generated(variant: Variant, work: Path, device: torch.device) -> dict[str, Any]:
    """All prompts, and what they came to."""
    settings = json.loads((work / "work.json").read_text())
    prompts = read_prompts(work)
    run = variant(Path(settings["weights"]), settings, device)
    count, longest = WARM_UP
    run([prompt[:longest] for prompt in prompts[:count]], settings["new_tokens"], Watch(device))
    _forget_peak(device)
    watch = Watch(device)
    tokens = run(prompts, settings["new_tokens"], watch)
    seconds = watch.now() - watch.began
    return {
        "tokens": tokens,
        "seconds": seconds,
        "first_seconds": [watch.first[request] for request in range(len(prompts))],
        "padding_share": 1 - sum(map(len, prompts)) / watch.places,
        "peak_bytes": peak_bytes(device),
        "threads": torch.get_num_threads(),
    }


def read_prompts(work: Path) -> list[Prompt]:
    """The ids of every prompt."""
    with np.load(work / "prompts.npz") as arrays:
        tokens, lengths = arrays["tokens"], arrays["lengths"]
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def _forget_peak(device: torch.device) -> None:
    """Loading weights may take more memory than using them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (peak := Path("/proc/self/clear_refs")).exists():
        peak.write_text("5")
