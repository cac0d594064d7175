"""Texts that a model writes: prompts to ids, packed generation, ids to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from seqmill.errors import UserError
from seqmill.models.inference.beams import beam_search
from seqmill.models.inference.generate import generate
from seqmill.models.inference.hypotheses import BeamSettings
from seqmill.models.inference.requests import GeneratedSequence, check_ids
from seqmill.models.inference.sampling import Sampling
from seqmill.models.inference.settings import EngineSettings
from seqmill.models.transformer import Model

if TYPE_CHECKING:
    from seqmill.models.evaluation.held_out import HeldOut
    from seqmill.tokenizers_ext import Encoder


@dataclass(frozen=True)
class SampleConfig:
    """How prompts are continued; see `generate`, and `beam_search` for beams, which draw nothing.

    Raises:
        UserError: a value is impossible, or excludes another.
    """

    max_new_tokens: int = 64
    temperature: float = 0.8  # 0 takes the most likely token every time
    top_k: int | None = 50
    seed: int = 0
    top_p: float | None = None
    min_p: float | None = None
    samples: int = 1  # of every prompt
    stop: tuple[str, ...] = ()  # texts that end a continuation and are not part of it
    draft: str | None = None  # a name in inference.drafting.DRAFTERS
    beams: int | None = None  # the likeliest continuations of a search with so many hypotheses, instead of draws
    beam_groups: int = 1  # of the hypotheses
    diversity: float = 0.0  # what a token costs for every time that an earlier group chose it, in nats

    def __post_init__(self) -> None:
        Sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        EngineSettings(draft=self.draft)
        if self.beams is None:
            if (self.beam_groups, self.diversity) != (1, 0.0):
                raise UserError("beam_groups and diversity are of a search; give beams, or leave them out")
            return
        BeamSettings(
            max_new_tokens=self.max_new_tokens, beams=self.beams, groups=self.beam_groups, diversity=self.diversity
        )
        if self.samples > self.beams:
            raise UserError(f"samples = {self.samples} of beams = {self.beams}: a search finds no more than its beams")
        if self.stop or self.draft is not None:
            raise UserError("beams: stop texts and drafts are for draws; leave them out, or leave out beams")


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote behind it."""

    prompt: str
    continuation: str
    finish: str = "length"  # why it ended: length, stop or error
    error: str | None = None  # why nothing was written


def sample_texts(
    model: Model, encoder: "Encoder", prompts: Sequence[str], config: SampleConfig, start: int | None = None
) -> list[Sample]:
    """Continue texts, each up to the end of its document, a stop text or `max_new_tokens`; the samples of a prompt
    follow one another, those of a search the best first. A prompt that cannot be continued says why, and the others go
    on.

    Args:
        encoder: the tokenizer that the model was trained with, `seqmill.tokenizers_ext.load(folder)`.
        start: an id that stands before every prompt.

    Raises:
        UserError: a setting is impossible, or stop texts or beams are asked of windows of bits.
    """
    from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder  # here, for it brings numba along

    ids = encoder.encode(pa.array(prompts, pa.large_string())).to_pylist()
    if start is not None:
        ids = [[start, *prompt] for prompt in ids]
    each = [prompt for prompt in prompts for _ in range(config.samples)]
    if not isinstance(encoder, EqualInfoEncoder):
        found = _continue(model, encoder, ids, config)
        texts = decode_texts(encoder, [one.tokens for one in found])
        texts = [text if one.text is None else _shown(one.text) for text, one in zip(texts, found, strict=True)]
        return _with_texts(each, texts, found)
    if config.beams is not None:
        raise UserError("beams: where a window of bits goes on is not searched for; leave it out with this tokenizer")
    if config.stop:
        raise UserError("stop: a window of bits begins and ends inside characters; leave it out with this tokenizer")
    healed = [encoder.heal(prompt) for prompt in ids]  # a text that goes on is cut otherwise where the prompt ends
    kept = [one.ids.tolist() for one in healed]
    found = _continue(model, encoder, kept, config, [one.next_ids for one in healed])
    before = [ids for ids in kept for _ in range(config.samples)]
    whole = decode_texts(encoder, [(*first, *one.tokens) for first, one in zip(before, found, strict=True)])
    rests = [text[len(prompt) :] for prompt, text in zip(each, whole, strict=True)]  # ids may begin in the prompt
    return _with_texts(each, rests, found)


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
    found = _continue(model, encoder, ids, config)
    prompts = decode_texts(encoder, ids)
    whole = decode_texts(encoder, [(*before, *one.tokens) for before, one in zip(ids, found, strict=True)])
    return _with_texts(prompts, [text[len(prompt) :] for prompt, text in zip(prompts, whole, strict=True)], found)


def decode_texts(encoder: "Encoder", sequences: Sequence[Sequence[int]]) -> list[str]:
    """Text of generated ids; bytes that are no UTF-8 (a character cut off at the end) become replacement marks."""
    return [_shown(text) for text in _decode(encoder, sequences)]


def _decode(encoder: "Encoder", sequences: Sequence[Sequence[int]]) -> list[bytes]:
    texts: list[bytes] = encoder.decode(pa.array(sequences, pa.list_(pa.uint32()))).to_pylist()
    return texts


def _decodes_parts(encoder: "Encoder") -> bool:
    """Whether the bytes of a text are those of its ids one after the other, but for a space at the beginning."""
    from seqmill.tokenizers_ext.byte_level import ByteEncoder
    from seqmill.tokenizers_ext.subword import SubwordEncoder

    return isinstance(encoder, ByteEncoder) or (isinstance(encoder, SubwordEncoder) and encoder.pieces is not None)


def _shown(text: bytes) -> str:
    return text.decode(errors="replace")


def _continue(
    model: Model,
    encoder: "Encoder",
    prompts: Sequence[Sequence[int]],
    config: SampleConfig,
    first_ids: Sequence[range] | None = None,
) -> list[GeneratedSequence]:
    """The new ids of every prompt, all samples of one after the other."""
    stop_ids = [encoder.special_ids["eos"]] if "eos" in encoder.special_ids else []
    if config.beams is not None:
        return _search(model, prompts, stop_ids, config)
    return generate(
        model,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        seed=config.seed,
        samples=config.samples,
        stop_ids=stop_ids,
        stop_texts=config.stop,
        decode=lambda sequences: _decode(encoder, sequences),
        decodes_parts=_decodes_parts(encoder),
        first_ids=first_ids,
        settings=EngineSettings(draft=config.draft),
    )


def _search(
    model: Model, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], config: SampleConfig
) -> list[GeneratedSequence]:
    """As _continue, by beam search."""
    assert config.beams is not None
    if config.beams > model.config.vocab_size:
        raise UserError(f"beams = {config.beams}: the vocabulary has {model.config.vocab_size} ids to begin with")
    errors = [_why_not(prompt, place, model.config.vocab_size) for place, prompt in enumerate(prompts)]
    searches = iter(
        beam_search(
            model,
            [prompt for prompt, error in zip(prompts, errors, strict=True) if error is None],
            config.max_new_tokens,
            beams=config.beams,
            groups=config.beam_groups,
            diversity=config.diversity,
            stop_ids=stop_ids,
        )
    )
    found = []
    for prompt, error in zip(prompts, errors, strict=True):
        if error is None:
            best = next(searches)[: config.samples]
            found += [GeneratedSequence(beam.tokens, beam.finish, len(prompt)) for beam in best]
        else:
            found += [GeneratedSequence((), "error", len(prompt), error)] * config.samples
    return found


def _why_not(prompt: Sequence[int], place: int, vocab_size: int) -> str | None:
    """What is wrong with the ids of a prompt."""
    try:
        check_ids(f"prompt {place}", prompt, vocab_size)
    except UserError as error:
        return str(error)
    return None


def _with_texts(
    prompts: Sequence[str], continuations: Sequence[str], found: Sequence[GeneratedSequence]
) -> list[Sample]:
    return [
        Sample(prompt, text, one.finish, one.error)
        for prompt, text, one in zip(prompts, continuations, found, strict=True)
    ]
