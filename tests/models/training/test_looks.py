"""Looks at a model while it trains: held-out documents, traps and samples, and none of it changes the run."""

import dataclasses
import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.models import StepRecord, TrainConfig, load, train
from seqmill.models.checkpoint import newest_checkpoint
from seqmill.models.evaluation import EvaluationConfig, HeldOut, evaluate, total
from seqmill.models.training.runlog import EvaluationRecord, SampleRecord, without_clocks
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.pipeline.traps import InjectConfig, inject
from seqmill.pipeline.traps.table import SCHEMA, write_traps
from seqmill.tokenizers_ext.artifact import save_byte

HERE = (LocalExecutor(1), Silent())
SHAPE = {"dim": 48, "layers": 2, "heads": 3, "kv_heads": 1, "head_dim": 16, "ffn_dim": 96}
TRAPS = ["quux frobnicate xyzzy", "never to be seen anywhere"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two sources with six copies of a trap, as tokens and as rows; and the same without, to look at."""
    folder = tmp_path_factory.mktemp("looks")
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list(string.ascii_lowercase), generator.integers(1, 9))) for _ in range(50)]
    texts = [" ".join(generator.choice(words, count)) for count in generator.integers(40, 120, 30)]
    lines = [json.dumps({"text": text, "source": "ab"[number % 2]}) for number, text in enumerate(texts)]
    (folder / "raw.jsonl").write_text("\n".join(lines))
    ingest(IngestConfig((str(folder / "raw.jsonl"),)), NormaliseConfig(), folder / "documents", *HERE)
    rows = {
        "trap_id": range(2), "text": TRAPS, "tokens": [9] * 2, "perplexity": [5.0] * 2, "bucket": [0] * 2,
        "member": [True, False], "copies": [0] * 2,
    }  # fmt: skip
    table = pa.table({name: pa.array(rows[name], SCHEMA.field(name).type) for name in rows})
    write_traps(folder / "traps.parquet", table)
    config = InjectConfig((6,), min_document_bytes=100)
    inject(folder / "documents", folder / "traps.parquet", config, folder / "injected", *HERE)
    save_byte(folder / "byte")
    tokenize(folder / "injected", folder / "byte", TokenizeConfig(), folder / "tokens", *HERE)
    tokenize(folder / "documents", folder / "byte", TokenizeConfig(), folder / "held-out", *HERE)
    pack(folder / "tokens", PackConfig(seq_len=128), folder / "packed", *HERE)
    return folder


@pytest.fixture
def looking(corpus: Path) -> TrainConfig:
    """Six updates, with looks after the second, fourth and last."""
    return TrainConfig(
        shape=SHAPE,
        steps=6,
        batch_tokens=512,
        checkpoint_every=3,
        eval_tokens=str(corpus / "held-out"),
        eval_every=2,
        sample_every=2,
        traps=str(corpus / "injected" / "traps.parquet"),
        injections=str(corpus / "injected" / "injections.parquet"),
    )


def lines_of(out: Path, name: str) -> list[dict[str, Any]]:
    return [without_clocks(json.loads(line)) for line in (out / name).read_text().splitlines()]


def test_a_run_is_looked_at_and_is_the_run_it_would_be_unseen(
    corpus: Path, looking: TrainConfig, tmp_path: Path
) -> None:
    seen: list[Any] = []
    train(corpus / "packed", tmp_path / "seen", looking, seen.append)
    unseen = TrainConfig(shape=SHAPE, steps=6, batch_tokens=512, checkpoint_every=3)
    train(corpus / "packed", tmp_path / "unseen", unseen)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, other = (newest_checkpoint(tmp_path / run) for run in ("seen", "unseen"))
        assert one is not None
        assert other is not None
        assert (one / name).read_bytes() == (other / name).read_bytes()
    found = lines_of(tmp_path / "seen", "eval.jsonl")
    assert [(line["step"], line["set"]) for line in found] == [(n, s) for n in (2, 4, 6) for s in ("holdout", "traps")]
    assert set(found[0]["by_source"]) == {"a", "b"}
    assert set(found[1]["by_source"]) == {"never", "6"}
    assert found[-2]["bits_per_byte"] < found[0]["bits_per_byte"]
    held_out = HeldOut.open(corpus / "held-out", EvaluationConfig(max_bytes=1 << 20, context=128))
    expected = total(evaluate(load(tmp_path / "seen"), held_out))
    assert found[-2]["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
    samples = lines_of(tmp_path / "seen", "samples.jsonl")
    assert [line["step"] for line in samples] == [2] * 4 + [4] * 4 + [6] * 4
    assert all(line["prompt"] for line in samples)
    assert [type(record) for record in seen].count(EvaluationRecord) == 6
    assert [type(record) for record in seen].count(SampleRecord) == 12


def test_the_loss_on_copies_of_traps_is_told_apart(corpus: Path, looking: TrainConfig, tmp_path: Path) -> None:
    whole_epochs = dataclasses.replace(looking, steps=2, batch_tokens=1 << 16)
    train(corpus / "packed", tmp_path / "run", whole_epochs)
    log = lines_of(tmp_path / "run", "log.jsonl")
    assert [line["targets_trap"] for line in log] == [6 * len(TRAPS[0])] * 2
    for line in log:
        told = [(line[f"loss_{part}"] or 0) * line[f"targets_{part}"] for part in ("unique", "repeat", "trap")]
        counted = sum(line[f"targets_{part}"] for part in ("unique", "repeat", "trap"))
        assert line["loss"] * counted == pytest.approx(sum(told), rel=1e-5)


def test_looks_after_the_last_checkpoint_are_done_again(corpus: Path, looking: TrainConfig, tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818 (it stands for a kill, not for an error)
        pass

    def stop(record: Any) -> None:
        if isinstance(record, StepRecord) and record.step == 5:
            raise Stopped

    train(corpus / "packed", tmp_path / "straight", looking)
    with pytest.raises(Stopped):
        train(corpus / "packed", tmp_path / "stopped", looking, stop)
    assert train(corpus / "packed", tmp_path / "stopped", looking).resumed_from == 3
    for name in ("log.jsonl", "eval.jsonl", "samples.jsonl"):
        assert lines_of(tmp_path / "stopped", name) == lines_of(tmp_path / "straight", name)


def test_a_finished_run_is_looked_at_once_where_it_is_asked_for_only_then(
    corpus: Path, looking: TrainConfig, tmp_path: Path
) -> None:
    blind = {"eval_tokens": None, "eval_every": None, "sample_every": None, "traps": None}
    train(corpus / "packed", tmp_path / "late", dataclasses.replace(looking, **blind))
    train(corpus / "packed", tmp_path / "seen", looking)
    log = (tmp_path / "late" / "log.jsonl").read_bytes()
    told: list[Any] = []
    held_out = dataclasses.replace(looking, traps=None)
    assert train(corpus / "packed", tmp_path / "late", held_out, told.append).resumed_from == 6
    assert [type(record) for record in told] == [EvaluationRecord] + [SampleRecord] * 4
    for _ in range(2):  # the second time there is nothing left to do
        train(corpus / "packed", tmp_path / "late", looking)
        for name in ("eval.jsonl", "samples.jsonl"):
            last = [line for line in lines_of(tmp_path / "seen", name) if line["step"] == 6]
            assert lines_of(tmp_path / "late", name) == last
    assert (tmp_path / "late" / "log.jsonl").read_bytes() == log


def test_prompts_are_continued_after_the_last_update_where_nothing_else_is_asked(corpus: Path, tmp_path: Path) -> None:
    config = TrainConfig(shape=SHAPE, steps=2, batch_tokens=512, prompts=("quux", "the"))
    train(corpus / "packed", tmp_path / "run", config)
    assert [(line["step"], line["prompt"]) for line in lines_of(tmp_path / "run", "samples.jsonl")] == [
        (2, "quux"),
        (2, "the"),
    ]
    assert not (tmp_path / "run" / "eval.jsonl").exists()


def test_the_logs_are_shown_in_tensorboard_where_asked(corpus: Path, looking: TrainConfig, tmp_path: Path) -> None:
    train(corpus / "packed", tmp_path / "run", dataclasses.replace(looking, tensorboard=True, steps=2))
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


def test_held_out_documents_of_another_tokenizer_are_refused(
    corpus: Path, looking: TrainConfig, tmp_path: Path, pack_folder: Callable[..., Path]
) -> None:
    manifest = json.loads((corpus / "held-out" / "manifest.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for path in (corpus / "held-out").glob("*.arrow"):
        (other / path.name).write_bytes(path.read_bytes())
    manifest["tokenizer"]["fingerprint"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"the tokenizer of .*other.* is not the one of the training data"):
        train(corpus / "packed", tmp_path / "run", dataclasses.replace(looking, eval_tokens=str(other)))
    bare = dataclasses.replace(looking, eval_tokens=None, eval_every=None, traps=None, sample_every=None)
    with pytest.raises(UserError, match=r"prompts needs a tokenizer for texts"):
        train(
            pack_folder([[1, 2, 3]] * 40), tmp_path / "run", dataclasses.replace(bare, injections=None, prompts=("a",))
        )


def test_weights_that_learned_other_tokens_are_refused_though_they_are_as_many(corpus: Path, tmp_path: Path) -> None:
    config = TrainConfig(shape=SHAPE, steps=1, batch_tokens=512)
    train(corpus / "packed", tmp_path / "first", config)
    begun = dataclasses.replace(config, init=str(tmp_path / "first"))
    train(corpus / "packed", tmp_path / "second", begun)
    other = shutil.copytree(corpus / "packed", tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"init = .*first: the tokenizer of its model .* \(0{16}\).*first/tokenizer$"):
        train(other, tmp_path / "third", begun)
    shutil.rmtree(tmp_path / "first" / "tokenizer")  # then nothing is known of it
    assert train(other, tmp_path / "third", begun).steps == 1


def test_a_prompt_without_a_token_is_refused_before_the_first_update(corpus: Path, tmp_path: Path) -> None:
    config = TrainConfig(shape=SHAPE, steps=2, batch_tokens=512, prompts=("a", ""))
    with pytest.raises(UserError, match="prompt 1 is '', which has no token to go on from"):
        train(corpus / "packed", tmp_path / "run", config)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_looks_at_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="eval_every = 5 needs eval_tokens or traps: there is nothing to look at"):
        TrainConfig(eval_every=5)
    with pytest.raises(UserError, match="sample_every = 5 needs eval_tokens or prompts"):
        TrainConfig(sample_every=5)
