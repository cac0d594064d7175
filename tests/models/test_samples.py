"""Texts that a model writes behind prompts: from text to text, whatever the tokenizer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from seqmill.compress.dictionary import Dictionary
from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, beam_search, generate
from seqmill.models.evaluation.held_out import EvaluationConfig, HeldOut
from seqmill.models.samples import Sample, SampleConfig, decode_texts, sample_beginnings, sample_texts
from seqmill.packing import TokenStore
from seqmill.tokenizers_ext import Encoder
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder

SINGLES = [bytes([byte]) for byte in range(256)]
WINDOWS = EqualInfoEncoder([Dictionary.from_strings([*SINGLES, b"th", b"the ", b"cat", b" sat", b"at "])])
PROMPTS = ["the ca", "naïve 🙂", "x"]
CONFIG = SampleConfig(max_new_tokens=12, temperature=1.0, top_k=None, seed=4)


def model_for(encoder: Encoder, config: ModelConfig) -> Model:
    model = Model(replace(config, vocab_size=encoder.vocab_size), seed=1)
    with torch.no_grad():
        model.embedding.weight.mul_(10)
    return model


def ids_of(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = encoder.encode(pa.array(texts, pa.large_string())).to_pylist()
    return found


def test_the_ids_of_a_prompt_are_continued_and_told_as_text(config: ModelConfig) -> None:
    encoder = ByteEncoder()
    model = model_for(encoder, config)
    eos = encoder.special_ids["eos"]
    new = generate(model, ids_of(encoder, PROMPTS), 12, temperature=1.0, stop_ids=[eos], seed=4)
    expected = [bytes(sequence.tokens).decode(errors="replace") for sequence in new]
    found = sample_texts(model, encoder, PROMPTS, CONFIG)
    ends = [sequence.finish for sequence in new]
    assert found == [Sample(*each) for each in zip(PROMPTS, expected, ends, strict=True)]
    assert any(sample.continuation for sample in found)
    assert sample_texts(model, encoder, PROMPTS, CONFIG) == found
    assert sample_texts(model, encoder, PROMPTS, replace(CONFIG, seed=5)) != found
    assert sample_texts(model, encoder, [], CONFIG) == []


def test_a_prompt_that_ends_within_a_window_goes_on_where_it_ended(config: ModelConfig) -> None:
    """ "ca" is no string of the dictionary, so the prompt's ids end with [a]. It is taken back, and the model goes on
    with a string that begins with a, of which the prompt has the a already: [a] adds nothing, [at ] adds "t "."""
    model = model_for(WINDOWS, config)
    with torch.no_grad():
        model.norm.weight.zero_()  # all ids are alike to it
    once = SampleConfig(max_new_tokens=1, temperature=1.0, top_k=None)
    found = sample_texts(model, WINDOWS, ["the ca"] * 40, once)
    assert {sample.continuation for sample in found} == {"", "t "}
    assert {sample.prompt for sample in found} == {"the ca"}


@pytest.mark.parametrize("encoder", [ByteEncoder(), WINDOWS], ids=["bytes", "windows"])
def test_without_prompts_held_out_documents_are_begun_and_continued(encoder: Encoder, config: ModelConfig) -> None:
    texts = ["the cat sat on the mat", "kätzchen und hund", "short", "dog eat dog"]
    ids = ids_of(encoder, texts)
    columns = {"doc_id": pa.array(range(4), pa.uint64()), "source": ["a"] * 4}
    table = pa.table({**columns, "input_ids": pa.array(ids, pa.list_(pa.uint16()))})
    store = TokenStore([table], {"vocab_size": encoder.vocab_size, "sources": ["a"]})
    held_out = HeldOut(store, np.ones(4), EvaluationConfig())
    model = model_for(encoder, config)
    found = sample_beginnings(model, encoder, held_out, CONFIG, count=2, tokens=5)
    long = [item for item in held_out.items.tolist() if len(ids[item]) > 5][:2]
    assert [sample.prompt for sample in found] == decode_texts(encoder, [ids[item][:5] for item in long])
    stop = [encoder.special_ids["eos"]]
    new = generate(model, [ids[item][:5] for item in long], 12, temperature=1.0, stop_ids=stop, seed=4)
    for sample, item, sequence in zip(found, long, new, strict=True):
        (whole,) = decode_texts(encoder, [[*ids[item][:5], *sequence.tokens]])
        assert sample.continuation == whole[len(sample.prompt) :]
    assert sample_beginnings(model, encoder, held_out, CONFIG, tokens=100) == []


def test_samples_stop_at_a_text_and_follow_one_another_by_prompt(config: ModelConfig) -> None:
    encoder = ByteEncoder()
    model = model_for(encoder, config)
    with torch.no_grad():
        model.embedding.weight[128:256] = 0.0  # texts of ASCII
        model.embedding.weight[:128].mul_(3.0)
    plain = sample_texts(model, encoder, PROMPTS, replace(CONFIG, samples=3, max_new_tokens=20))
    assert [sample.prompt for sample in plain] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert len({sample.continuation for sample in plain}) > 3
    stop = next(sample.continuation[4:6] for sample in plain if sample.continuation.isascii())
    stopped = sample_texts(model, encoder, PROMPTS, replace(CONFIG, samples=3, max_new_tokens=20, stop=(stop,)))
    for full, cut in zip(plain, stopped, strict=True):
        assert cut.continuation == full.continuation.partition(stop)[0]
        assert (cut.finish == "stop") == (stop in full.continuation or full.finish == "stop")
    with pytest.raises(UserError, match="stop: a window of bits"):
        sample_texts(model, WINDOWS, ["the"], replace(CONFIG, stop=("a",)))


def test_beams_are_the_likeliest_continuations_that_a_search_finds(config: ModelConfig) -> None:
    encoder = ByteEncoder()
    model = model_for(encoder, config)
    prompts = ["ab", "", "the cat"]
    how = replace(CONFIG, beams=4, beam_groups=2, diversity=0.5, samples=3, max_new_tokens=8)
    found = sample_texts(model, encoder, prompts, how)
    ids = [list(prompt.encode()) for prompt in prompts if prompt]
    expected = beam_search(model, ids, 8, beams=4, groups=2, diversity=0.5, stop_ids=[encoder.special_ids["eos"]])
    for prompt, beams in (("ab", expected[0]), ("the cat", expected[1])):
        texts = [one.continuation for one in found if one.prompt == prompt]
        assert texts == decode_texts(encoder, [beam.tokens for beam in beams[:3]])
    assert [one.finish for one in found[3:6]] == ["error"] * 3
    assert "prompt 1 is empty" in str(found[3].error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 3}, "samples = 3 of beams = 2"),
        ({"beam_groups": 3}, "groups must divide beams"),
        ({"beams": None, "beam_groups": 2}, "beam_groups and diversity are of a search"),
        ({"beams": None, "diversity": 0.5}, "beam_groups and diversity are of a search"),
        ({"beams": None, "draft": "guess"}, "draft = 'guess'"),
        ({"beams": None, "top_p": 2.0}, r"top_p = 2\.0"),
        ({"stop": ("a",)}, "stop texts and drafts are for draws"),
        ({"draft": "copy"}, "stop texts and drafts are for draws"),
    ],
)
def test_a_search_takes_no_settings_of_draws(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleConfig(**{"beams": 2, **settings})


def test_a_prompt_that_cannot_be_searched_from_leaves_the_others_to_go_on(config: ModelConfig) -> None:
    encoder = ByteEncoder()
    model = Model(replace(config, vocab_size=100), seed=1)
    bad, good = sample_texts(model, encoder, ["~", "AB"], replace(CONFIG, beams=2))
    assert (bad.finish, good.finish) == ("error", "length")
    assert "prompt 0 holds the id 126" in str(bad.error)


def test_windows_of_bits_and_more_beams_than_ids_are_refused(config: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"beams = 300: the vocabulary has \d+ ids"):
        sample_texts(model_for(ByteEncoder(), config), ByteEncoder(), ["the"], replace(CONFIG, beams=300))
    with pytest.raises(UserError, match="beams: where a window of bits goes on"):
        sample_texts(model_for(WINDOWS, config), WINDOWS, ["the"], replace(CONFIG, beams=2))


def test_a_prompt_without_a_token_says_so_and_the_others_go_on(config: ModelConfig) -> None:
    encoder = ByteEncoder()
    model = model_for(encoder, config)
    one, none, two = sample_texts(model, encoder, ["ab", "", "cd"], replace(CONFIG, temperature=0.0))
    assert (none.finish, none.continuation) == ("error", "")
    assert none.error is not None
    assert none.error.startswith("prompt 1: prompt is empty")
    assert [one, two] == sample_texts(model, encoder, ["ab", "cd"], replace(CONFIG, temperature=0.0))
