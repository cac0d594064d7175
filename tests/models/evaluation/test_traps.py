"""Traps while a model is trained: their copies found in packed rows, and the traps themselves as an evaluation."""

import json
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seqmill.errors import UserError
from seqmill.models import Model, ModelConfig, score
from seqmill.models.evaluation.held_out import EvaluationConfig
from seqmill.models.evaluation.losses import evaluate
from seqmill.models.evaluation.traps import PARTS, TrapTokens, token_parts, trap_groups
from seqmill.packing import PackedDataset, PackedRows
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.pipeline.traps import InjectConfig, inject
from seqmill.pipeline.traps.table import SCHEMA, write_traps
from seqmill.storage import read_arrow
from seqmill.tokenizers_ext import load, spans
from seqmill.tokenizers_ext.artifact import save_byte

HERE = (LocalExecutor(1), Silent())
TRAPS = ["über alles quux frobnicate", "zzz \U0001f642 zzz", "plain words of a member", "the other member", "x y", "no"]


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten documents, four of which hold 1 or 6 copies of a trap; two traps are in none."""
    folder = tmp_path_factory.mktemp("traps")
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list(string.ascii_lowercase), generator.integers(1, 9))) for _ in range(300)]
    texts = [" ".join(generator.choice(words, count)) for count in generator.integers(60, 200, 10)]
    (folder / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ingest(IngestConfig((str(folder / "raw.jsonl"),)), NormaliseConfig(), folder / "documents", *HERE)
    rows = {
        "trap_id": range(6), "text": TRAPS, "tokens": [9] * 6, "perplexity": [5.0] * 6, "bucket": [0] * 6,
        "member": [True] * 4 + [False] * 2, "copies": [0] * 6,
    }  # fmt: skip
    write_traps(
        folder / "traps.parquet", pa.table({name: pa.array(rows[name], SCHEMA.field(name).type) for name in rows})
    )
    config = InjectConfig((1, 6), min_document_bytes=200)
    inject(folder / "documents", folder / "traps.parquet", config, folder / "injected", *HERE)
    return folder / "injected"


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest, injected: Path) -> Path:
    out = injected.parent / request.param
    if request.param == "byte":
        save_byte(out)
    else:
        texts = [text for path in injected.glob("part-*.arrow") for text in read_arrow(path)["text"].to_pylist()]
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
        )
        out.mkdir()
        bpe.save(str(out / "tokenizer.json"))
    return out


@pytest.fixture(scope="module")
def packed_as(injected: Path, tokenizer: Path) -> Callable[..., Path]:
    tokens = tokenizer.parent / f"{tokenizer.name}-tokens"
    tokenize(injected, tokenizer, TokenizeConfig(), tokens, *HERE)

    def make(**config: object) -> Path:
        out = tokens.parent / f"{tokenizer.name}-{'-'.join(map(str, config.values()))}"
        pack(tokens, PackConfig(**config), out, *HERE)  # type: ignore[arg-type]
        return out

    return make


def marked_by_bytes(packed: Path, injected: Path, tokenizer: Path) -> dict[int, list[bool]]:
    """For every row, whether each token's target covers a byte of a copy: from the spans of the documents' texts."""
    documents = pa.concat_tables(read_arrow(path) for path in sorted(injected.glob("part-*.arrow")))
    found = spans(load(tokenizer), documents["text"].combine_chunks())
    both = zip(found.starts.to_pylist(), found.ends.to_pylist(), strict=True)
    begins = dict(zip(documents["doc_id"].to_pylist(), both, strict=True))
    copies: dict[int, list[tuple[int, int]]] = {}
    for row in pq.read_table(injected / "injections.parquet").to_pylist():
        copies.setdefault(row["doc_id"], []).append((row["start"], row["stop"]))
    marks = {}
    rows = PackedRows(packed)
    for number in range(rows.rows):
        row, marks[number] = rows.row(number), []
        for doc_id, offset, length in zip(row["doc_id"], row["doc_offset"], row["seq_lengths"], strict=True):
            starts, ends = begins[int(doc_id)]
            for place in range(int(offset) + 1, int(offset) + int(length) + 1):
                known = place < len(starts)  # the end-of-document id and what follows it are no text
                inside = (starts[place] < stop and ends[place] > start for start, stop in copies.get(int(doc_id), []))
                marks[number].append(known and any(inside))
    return marks


@pytest.mark.parametrize("config", [{"seq_len": 50}, {"seq_len": 700, "overflow": "truncate"}])
def test_the_targets_of_a_batch_that_belong_to_copies_are_marked(
    packed_as: Callable[..., Path], injected: Path, tokenizer: Path, config: dict[str, object]
) -> None:
    packed = packed_as(**config)
    expected = marked_by_bytes(packed, injected, tokenizer)
    traps = TrapTokens.find(packed, injected / "injections.parquet")
    marked = 0
    for batch in PackedDataset(packed, batch_rows=3, seed=1):
        mask = traps.mask(batch)
        assert mask.tolist() == [mark for row in batch["row_ids"].tolist() for mark in expected[row]]
        marked += int(mask.sum())
        parts = token_parts(batch, traps)
        assert parts is not None
        assert [PARTS[part] for part in parts.tolist()] == ["trap" if mark else "unique" for mark in mask.tolist()]
    assert marked > 40


def test_repeats_and_traps_are_told_apart(packed_as: Callable[..., Path], injected: Path) -> None:
    packed = packed_as(seq_len=50)
    traps = TrapTokens.find(packed, injected / "injections.parquet")
    batch = dict(PackedDataset(packed, batch_rows=10**6, shuffle=False).batch_at(0))
    assert token_parts(batch, None) is None
    segments = len(batch["cu_seqlens"]) - 1
    repeated = np.arange(segments) % 2 == 1
    batch["is_repeat"] = torch.from_numpy(repeated)
    of_token = np.repeat(repeated, np.diff(batch["cu_seqlens"].numpy()))
    without, both = token_parts(batch, None), token_parts(batch, traps)
    assert without is not None
    assert both is not None
    assert without.tolist() == of_token.astype(int).tolist()
    mask = traps.mask(batch).numpy()
    assert both.tolist() == np.where(mask, 2, of_token).tolist()
    assert {int(part) for part in both} == {0, 1, 2}


def test_traps_are_evaluated_by_how_often_they_were_injected(
    injected: Path, tokenizer: Path, config: ModelConfig
) -> None:
    encoder = load(tokenizer)
    model = Model(ModelConfig(**{**config.to_json(), "vocab_size": encoder.vocab_size}), seed=1)
    held_out = trap_groups(injected / "traps.parquet", tokenizer, EvaluationConfig())
    found = evaluate(model, held_out)
    assert list(found) == ["1", "6", "never"]
    copies = pq.read_table(injected / "traps.parquet")["copies"].to_pylist()
    for name, count in (("1", 1), ("6", 6), ("never", 0)):
        own = [f" {text}" for text, times in zip(TRAPS, copies, strict=True) if times == count]
        ids = encoder.encode(pa.array(own)).to_pylist()
        nats = -sum(float(log_p.sum()) for log_p in score(model, ids))
        assert found[name].documents == len(own) == 2
        assert found[name].bytes == sum(len(text.encode()) for text in own)
        assert found[name].loss == pytest.approx(nats / sum(len(each) - 1 for each in ids), rel=1e-5)


def test_a_file_of_something_else_is_refused(packed_as: Callable[..., Path], injected: Path, tokenizer: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*traps inject"):
        TrapTokens.find(packed_as(seq_len=50), injected / "missing.parquet")
    with pytest.raises(UserError, match=r"cannot read .*traps inject"):
        trap_groups(injected / "injections.parquet", tokenizer, EvaluationConfig())
