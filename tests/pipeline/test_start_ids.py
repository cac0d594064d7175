"""Models of the hub read and continue texts behind the id that their tokenizer's template puts there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from scored_corpus import read_alone
from seqmill.models import Model, ModelConfig
from seqmill.models.huggingface import export_huggingface
from seqmill.pipeline.config import GenerateConfig
from seqmill.pipeline.model_steps import continue_texts, open_language_model
from seqmill.pipeline.ray_data import ScoreBatch

TEXTS = ["the cat", "a", "", "cat the the a cat"]
START, END = 0, 1


@pytest.fixture(scope="module", params=[True, False], ids=["template", "no template"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a tokenizer of letters as transformers keeps them."""
    letters = ["<s>", "</s>", *sorted(set("the cat a"))]
    vocab = {letter: id_ for id_, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if request.param:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    model = Model(ModelConfig(len(letters), dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48), seed=3)
    with torch.no_grad():
        model.embedding.weight.mul_(10.0)
    out = tmp_path_factory.mktemp("hub")
    export_huggingface(model, out)
    tokenizer.save(str(out / "tokenizer.json"))
    return out


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[list[int]]:
    """As transformers encodes the texts."""
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    found: list[list[int]] = [theirs(text)["input_ids"] for text in TEXTS]
    has_template = json.loads((folder / "tokenizer.json").read_text())["post_processor"] is not None
    assert [START in each for each in found] == [has_template] * len(TEXTS)
    return found


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_continuations_are_those_of_transformers(folder: Path, ids: list[list[int]], theirs: Any) -> None:
    prompts = tuple(text for text in TEXTS if text)
    config = GenerateConfig(prompts=prompts, max_new_tokens=12, temperature=0.0, device="cpu")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = continue_texts(folder, config)
    for text, prompt, sample in zip(TEXTS, ids, (found[0], found[1], None, found[2]), strict=True):
        if sample is None:
            continue
        whole = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=END)[0]
        assert (sample["prompt"], sample["continuation"]) == (text, tokenizer.decode(whole[len(prompt) :].tolist()))


def test_scores_are_those_of_transformers(folder: Path, ids: list[list[int]], theirs: Any) -> None:
    score = ScoreBatch(str(folder), per_token=True, append_eos=False)
    found = score(pa.table({"text": TEXTS}))["token_log_probs"].to_pylist()
    for prompt, log_probs in zip(ids, found, strict=True):
        assert log_probs == pytest.approx(read_alone(theirs, prompt)[0].tolist() if len(prompt) > 1 else [], abs=1e-5)


def test_a_language_model_puts_it_there_unasked(folder: Path, ids: list[list[int]], theirs: Any) -> None:
    model = open_language_model(folder)
    plain = [[id_ for id_ in prompt if id_ != START] for prompt in ids if prompt not in ([], [START])]
    begun = [prompt for prompt in ids if prompt not in ([], [START])]
    for prompt, whole, found in zip(plain, begun, model.log_probabilities(plain), strict=True):
        expected = read_alone(theirs, whole)[0][len(whole) - len(prompt) :]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    written = model.sample(plain, 8, 0.0, 0)
    for whole, tokens in zip(begun, written, strict=True):
        expected = theirs.generate(torch.tensor([whole]), max_new_tokens=8, do_sample=False, eos_token_id=END)[0]
        assert list(tokens) == [id_ for id_ in expected[len(whole) :].tolist() if id_ != END]
