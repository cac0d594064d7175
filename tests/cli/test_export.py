import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.cli.conftest import Call
from transformers import AutoModelForCausalLM, AutoTokenizer

from seqmill.pipeline.model_steps import open_language_model
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load

QUIET = ("--workers", "1", "--quiet")
TEXTS = [f"the quick brown fox number {k} jumps over {k * k} lazy dogs and comes home again" for k in range(80)]


@pytest.fixture
def run(seqmill_here: Call) -> Path:
    Path("raw.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n")
    for command in (
        ("tokenizer", "train", "raw.jsonl", "--kind", "bpe", "--vocab-size", "400", "--out", "bpe", *QUIET),
        ("tokenize", "raw.jsonl", "--tokenizer", "bpe", "--out", "tokens", *QUIET),
        ("pack", "tokens", "--seq-len", "64", "--out", "packed", *QUIET),
        ("train", "packed", "--steps", "2", "--batch-tokens", "128", "--device", "cpu", "--out", "run", "--quiet"),
    ):
        code, _, errors = seqmill_here(*command)
        assert code == 0, errors
    return Path("run")


def test_an_exported_run_is_read_by_transformers_and_by_us(seqmill_here: Call, run: Path) -> None:
    code, printed, _ = seqmill_here("export", "run", "--out", "hub", "--json")
    assert code == 0
    figures: dict[str, Any] = json.loads(printed)
    assert (figures["family"], figures["tokenizer"]) == ("llama", "hub/tokenizer.json")
    theirs, ours = AutoModelForCausalLM.from_pretrained("hub"), open_language_model(Path("hub"))
    assert theirs.num_parameters() <= figures["parameters"]  # without the padding of the vocabulary
    ids = AutoTokenizer.from_pretrained("hub")(TEXTS[3]).input_ids
    assert ids == load("run/tokenizer").encode(pa.array([TEXTS[3]])).to_pylist()[0]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    for model in (ours, open_language_model(run)):
        (found,) = model.log_probabilities([ids])
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)
    code, _, errors = seqmill_here("export", "run", "--out", "run")
    assert (code, "whose files would be lost" in errors) == (2, True)
    assert open_language_model(run).fingerprint != ours.fingerprint
    continued = ("generate", "hub", "--prompts", "raw.jsonl", "--max-new-tokens", "2", "--json")
    assert seqmill_here(*continued)[0] == 0
    found = json.loads(seqmill_here(*continued, "--beams", "3", "--samples", "2")[1])["samples"]
    assert [sample["prompt"] for sample in found] == [text for text in TEXTS for _ in range(2)]
    for folder in ("run", "hub"):
        assert seqmill_here("score", folder, "tokens", "--out", f"by-{folder}", "--device", "cpu", *QUIET)[0] == 0
    scores = [read_arrow(Path(f"by-{folder}/part-00000.arrow"))["log_prob"].to_numpy() for folder in ("run", "hub")]
    assert len(scores[0]) == len(TEXTS)
    np.testing.assert_allclose(*scores, rtol=1e-6)


def test_a_run_whose_tokenizer_has_a_template_is_exported_as_it_was_trained(seqmill_here: Call, run: Path) -> None:
    """Without the id that the template puts before texts: here and in transformers, which would put it there."""
    tokenizer = json.loads(Path("bpe/tokenizer.json").read_text())
    (start,) = (token["id"] for token in tokenizer["added_tokens"])
    special = tokenizer["added_tokens"][0]["content"]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": special, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {special: {"id": special, "ids": [start], "tokens": [special]}},
    }
    Path("run/tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    Path("run/tokenizer/seqmill.json").unlink(missing_ok=True)
    assert load("run/tokenizer").start_id == start
    assert seqmill_here("export", "run", "--out", "hub")[0] == 0
    ids = AutoTokenizer.from_pretrained("hub")(TEXTS[3]).input_ids
    assert ids == load("run/tokenizer").encode(pa.array([TEXTS[3]])).to_pylist()[0]
    ours, exported = (open_language_model(Path(folder)).log_probabilities([ids])[0] for folder in ("run", "hub"))
    np.testing.assert_array_equal(ours, exported)
    for folder in ("run", "hub"):
        assert seqmill_here("score", folder, "raw.jsonl", "--out", f"by-{folder}", "--device", "cpu", *QUIET)[0] == 0
    totals = [json.loads(Path(f"by-{folder}/manifest.json").read_text())["totals"] for folder in ("run", "hub")]
    assert totals[0] == totals[1]
