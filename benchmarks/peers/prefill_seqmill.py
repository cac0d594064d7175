"""This project's generation, driven as its peers are: prompts end to end under a budget, without padding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from prompts import DTYPES, Generate, Prompt, Watch, main

from seqmill.models import generate, load


def packed(weights: Path, _settings: Mapping[str, Any], device: torch.device) -> Generate:
    """`generate` as it comes."""
    model = load(weights, str(device), str(DTYPES[device.type]).removeprefix("torch."))

    def run(prompts: Sequence[Prompt], new_tokens: int, watch: Watch) -> list[list[int]]:
        watch.places += sum(map(len, prompts))
        found = generate(model, prompts, new_tokens, on_token=lambda request, _token: watch.tell([request]))
        return [list(sequence.tokens) for sequence in found]

    return run


if __name__ == "__main__":
    main("seqmill", {"packed": packed})
