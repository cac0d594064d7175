"""Texts that a model writes: prompts to ids, packed generation, ids to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from seqmill.errors import UserError
from seqmill.models.inference.generate import generate
from seqmill.models.transformer import Model

if TYPE_CHECKING:
    from seqmill.models.evaluation.held_out import HeldOut
    from seqmill.tokenizers_ext import Encoder


@dataclass(frozen=True)
class SampleConfig:
    """How prompts are continued; see `generate`."""

    max_new_tokens: int = 64
    temperature: float = 0.8  # 0 takes the most likely token every time
    top_k: int | None = 50
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote behind it."""

    prompt: str
    continuation: str


def sample_texts(model: Model, encoder: "Encoder", prompts: Sequence[str], config: SampleConfig) -> list[Sample]:
    """Continue texts, each up to the end of its document or `max_new_tokens`.

    Args:
        encoder: the tokenizer that the model was trained with, `seqmill.tokenizers_ext.load(folder)`.

    Raises:
        UserError: a prompt has no token.
    """
    from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder  # here, for it brings numba along

    ids = encoder.encode(pa.array(prompts, pa.large_string())).to_pylist()
    if not isinstance(encoder, EqualInfoEncoder):
        return _with_texts(prompts, decode_texts(encoder, _continue(model, encoder, ids, config)))
    healed = [encoder.heal(prompt) for prompt in ids]  # a text that goes on is cut otherwise where the prompt ends
    kept = [each.ids.tolist() for each in healed]
    new = _continue(model, encoder, kept, config, [each.next_ids for each in healed])
    whole = decode_texts(encoder, [(*before, *after) for before, after in zip(kept, new, strict=True)])
    rests = [text[len(prompt) :] for prompt, text in zip(prompts, whole, strict=True)]  # ids may begin in the prompt
    return _with_texts(prompts, rests)


def check_prompts(encoder: "Encoder", prompts: Sequence[str]) -> None:
    """Whether all prompts can be continued, before a model is there to do it.

    Raises:
        UserError: a prompt has no token.
    """
    for index, ids in enumerate(encoder.encode(pa.array(prompts, pa.large_string())).to_pylist()):
        if not ids:
            raise UserError(f"prompt {index} is {prompts[index]!r}, which has no token to go on from; give it a text")


def sample_beginnings(
    model: Model, encoder: "Encoder", held_out: "HeldOut", config: SampleConfig, count: int = 4, tokens: int = 16
) -> list[Sample]:
    """Continue the first `tokens` tokens of the first `count` held-out documents that are longer than that.

    A character that the cut goes through is shown as a replacement mark, at the end of the prompt.
    """
    ids = held_out.beginnings(count, tokens)
    new = _continue(model, encoder, ids, config)
    prompts = decode_texts(encoder, ids)
    whole = decode_texts(encoder, [(*before, *after) for before, after in zip(ids, new, strict=True)])
    return _with_texts(prompts, [text[len(prompt) :] for prompt, text in zip(prompts, whole, strict=True)])


def decode_texts(encoder: "Encoder", sequences: Sequence[Sequence[int]]) -> list[str]:
    """Text of generated ids; bytes that are no UTF-8 (a character cut off at the end) become replacement marks."""
    ids = pa.array(sequences, pa.list_(pa.uint32()))
    return [text.decode(errors="replace") for text in encoder.decode(ids).to_pylist()]


def _continue(
    model: Model,
    encoder: "Encoder",
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    first_ids: Sequence[range] | None = None,
) -> list[tuple[int, ...]]:
    """The new ids of every prompt."""
    sequences = generate(
        model,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        seed=config.seed,
        stop_ids=[encoder.special_ids["eos"]] if "eos" in encoder.special_ids else [],
        first_ids=first_ids,
    )
    return [sequence.tokens for sequence in sequences]


def _with_texts(prompts: Sequence[str], continuations: Sequence[str]) -> list[Sample]:
    return [Sample(prompt, text) for prompt, text in zip(prompts, continuations, strict=True)]
