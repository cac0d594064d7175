"""Generation of transformers on the same weights, by each of its ways for many prompts.

padded            `generate` on batches in the given order, padded on the left to the longest of each
length-sorted     the same on batches of similar lengths, the shortest first
generate_batch    its continuous batching: paged cache, no padding; on a processor with a cache as large as the
                  prompts need, for it would take all memory there is
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from prompts import DTYPES, Generate, Prompt, Variant, Watch, main

PAGE = 256  # tokens: its own default
BATCH_TOKENS = 1024  # of a forward pass on a processor


def loaded(weights: Path, device: torch.device) -> Any:
    """The model, which ends no text by itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(weights, attn_implementation="sdpa", dtype=DTYPES[device.type])
    model.generation_config.eos_token_id = None
    return model.to(device).eval()


def in_batches(is_sorted: bool) -> Variant:
    """`generate` on padded batches."""

    def load(weights: Path, settings: Mapping[str, Any], device: torch.device) -> Generate:
        model = loaded(weights, device)

        def run(prompts: Sequence[Prompt], new_tokens: int, watch: Watch) -> list[list[int]]:
            order = list(range(len(prompts)))
            if is_sorted:
                order.sort(key=lambda request: len(prompts[request]))
            found: dict[int, list[int]] = {}
            for k in range(0, len(order), settings["batch"]):
                requests = order[k : k + settings["batch"]]
                ids, mask = padded([prompts[request] for request in requests])
                watch.places += ids.numel()

                def told(ids: torch.Tensor, *_: Any, requests: Sequence[int] = requests, **_more: Any) -> torch.Tensor:
                    watch.tell(requests)
                    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

                out = model.generate(
                    ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=0,
                    stopping_criteria=[told],
                )
                found.update(zip(requests, out[:, ids.shape[1] :].tolist(), strict=True))
            return [found[request] for request in range(len(prompts))]

        return run

    return load


def padded(prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [prompts, the most tokens]; padding on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def continuous(weights: Path, _settings: Mapping[str, Any], device: torch.device) -> Generate:
    """`generate_batch`."""
    from transformers import ContinuousBatchingConfig, GenerationConfig
    from transformers.generation.continuous_batching import requests as their_requests

    model = loaded(weights, device)

    def run(prompts: Sequence[Prompt], new_tokens: int, watch: Watch) -> list[list[int]]:
        watch.places += sum(map(len, prompts))
        their_requests.time = SimpleNamespace(perf_counter=watch.now)  # their times of tokens are then ours
        pages = sum(-(-(len(prompt) + new_tokens) // PAGE) for prompt in prompts)
        sizes = {"num_blocks": pages + 1, "max_batch_tokens": BATCH_TOKENS} if device.type == "cpu" else {}
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.generate_batch(
            list(prompts),
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(**sizes),
            record_timestamps=True,
        )
        outputs = list(found.values())
        failed = [output.error for output in outputs if output.error is not None]
        if failed or len(outputs) < len(prompts):
            raise RuntimeError(f"{len(prompts) - len(outputs) + len(failed)} of {len(prompts)} failed: {failed[:1]}")
        for request, output in enumerate(outputs):
            watch.first[request] = output.timestamps[0] - watch.began
        return [output.generated_tokens for output in outputs]

    return run


VARIANTS = {"padded": in_batches(False), "length-sorted": in_batches(True), "generate_batch": continuous}

if __name__ == "__main__":
    main("transformers", VARIANTS)
