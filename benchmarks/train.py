"""Training beside transformers' Trainer: the same first weights, documents of an update, and optimizer.

    one thread     on the CPU; seconds are those of the processor
    all threads    on the CPU, a thread per core
    cuda           on a GPU, with products in bfloat16

Documents get a BPE of their own, rows of 2,048 tokens and are cut there; an update has four rows of documents. Its
documents come to the Trainer either one a line, padded to the longest of a micro-batch, or flattened by its own
collator. Useful tokens are targets: tokens of documents but the first. A second is one of updates after the first ones,
so start, loading and warming up are left out. Systems take turns, each time in a process of its own, and a speed is the
median of its turns; how many times as fast one is as another is the median over the turns. Of a peer whose loss in the
first update is not that of seqmill no speed is shown.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.models import Model
from seqmill.models.config import find_preset, preset_config
from seqmill.models.huggingface import export_huggingface
from seqmill.packing import PackedDataset
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.pipeline.train_tokenizer import TokenizerConfig, train_tokenizer

from .support import corpus
from .support.arguments import require_known
from .support.contenders import Contender, find_contenders, room_rows, speed_rows, take_turns
from .support.devices import require_measured
from .support.peers import TRAINERS
from .support.rows import Row, row

MODELS = {"cpu": "tiny", "cuda": "124m"}
VOCABULARY = {"cpu": 8192, "cuda": 32_768}
ROW = 2048  # tokens
UPDATE = {"cpu": 4 * ROW, "cuda": 32 * ROW}  # tokens that its rows have room for
UPDATES = {"cpu": 5, "cuda": 40}  # the last one is not timed
WARM_UP = {"cpu": 1, "cuda": 15}  # first updates, which are not timed
TURNS = 3
MOST_BYTES = 8_000_000  # of text
SEED = 1
RATE_SHARE = 0.2  # of the preset's peak rate: it is the same from the first update on
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
SAME_LOSS = 1e-4  # relative, in the first update
CASES = {"cpu": ("one-thread", "all-threads"), "cuda": ("cuda",)}


def run(
    data: Path | None = None,
    cases: Sequence[str] = (),
    device: str = "cpu",
    model: str | None = None,
    peers: Sequence[str] = TRAINERS,
) -> dict[str, Any]:
    """Rows of the chosen cases, and notes on losses and on what could not be measured.

    Args:
        data: a file or folder that `seqmill ingest` reads; default: examples/corpus.
        cases: of those above; default: all that the device can do.
        device: "cpu" or "cuda".
        model: a preset; default: a small one on the CPU, 124m on CUDA.
        peers: of `TRAINERS`.

    Raises:
        UserError: a case, peer, preset or device that does not exist, or data that does not fill the updates.
    """
    require_measured(device, CASES, "training is")
    require_known(cases, CASES[device], f"case on {device}")
    require_known(peers, TRAINERS, "peer")
    preset = model or MODELS[device]
    find_preset(preset)
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        targets = write_work(scratch / "work", data or corpus.EXAMPLES, device, preset)
        contenders = find_contenders(scratch, "train", peers, notes)
        for case in cases or CASES[device]:
            rows += _case(scratch / case, case, preset, contenders, targets, notes)
    return {"rows": rows, "notes": notes}


def write_work(work: Path, data: Path, device: str, preset: str) -> list[int]:
    """The folder that drivers read (peers/updates.py), and the targets of every update.

    Raises:
        UserError: there are fewer rows than the updates need.
    """
    packed = _packed(work, data, VOCABULARY[device])
    rows, steps = UPDATE[device] // ROW, UPDATES[device]
    dataset = PackedDataset(packed, batch_rows=rows, seed=SEED, epochs=1)
    if len(dataset) <= steps:  # the last update of an epoch may be short
        raise UserError(
            f"--data {data}: its tokens fill {len(dataset) - 1} updates, {steps} are needed; give more text"
        )
    batches = [dataset.batch_at(step) for step in range(steps)]
    stored = [[dataset.row(int(row)) for row in batch["row_ids"]] for batch in batches]
    flat = [row for update in stored for row in update]
    np.savez(
        work / "documents.npz",
        tokens=np.concatenate([row["input_ids"] for row in flat]),
        lengths=np.concatenate([np.diff(row["cu_seqlens"]) for row in flat]),
        rows=[len(row["cu_seqlens"]) - 1 for row in flat],
        updates=[len(update) for update in stored],
    )
    settings = {
        "model": preset,
        "seed": SEED,
        "steps": steps,
        "warm_up": WARM_UP[device],
        "batch_tokens": UPDATE[device],
        "learning_rate": RATE_SHARE * find_preset(preset).learning_rate,
        "betas": BETAS,
        "weight_decay": WEIGHT_DECAY,
        "grad_clip": CLIP,
    }
    (work / "work.json").write_text(json.dumps(settings))
    vocab_size = open_manifest(packed, "packed")["pack"]["vocab_size"]
    export_huggingface(Model(preset_config(preset, vocab_size), SEED), work / "weights")
    return [batch["n_loss_tokens"] for batch in batches]


def _packed(work: Path, data: Path, vocab_size: int) -> Path:
    """Some of the documents, cut at the end of a row, in rows."""
    work.mkdir(parents=True)
    executor, progress = LocalExecutor(1), Silent()
    texts = corpus.some_texts(data, work / "all", MOST_BYTES).to_pylist()
    lines = corpus.write_numbered(work / "texts.jsonl", texts)
    documents = corpus.ingested(lines, work / "documents")
    train_tokenizer(documents, TokenizerConfig(vocab_size=vocab_size), work / "tokenizer", executor, progress)
    tokenize(documents, work / "tokenizer", TokenizeConfig(), work / "tokens", executor, progress)
    pack(work / "tokens", PackConfig(seq_len=ROW, overflow="truncate"), work / "packed", executor, progress)
    return work / "packed"


def _case(
    folder: Path, case: str, preset: str, contenders: Sequence[Contender], targets: Sequence[int], notes: list[str]
) -> Iterator[Row]:
    """All figures of one case."""
    device = "cuda" if case == "cuda" else "cpu"
    found = take_turns(contenders, TURNS, folder, case == "one-thread", "train", folder.parent / "work", device)
    notes += [f"{case}: {error}" for error in found.failed.values()]
    timed = sum(targets[WARM_UP[device] : -1])
    shown = f"{preset}, {case}"
    notes.append(f"{shown}: threads {found.threads}; {timed} targets in {TURNS} turns each")
    yield from figures(shown, found.whole, timed, notes)


def figures(
    shown: str, answers: Mapping[str, Sequence[Mapping[str, Any]]], timed: int, notes: list[str]
) -> Iterator[Row]:
    """The rows of a case from what drivers answered in their turns, ours first.

    Args:
        timed: targets of the updates that were timed.
    """
    own = next(iter(answers), None)
    if own is None:
        return
    reference = answers[own][0]["losses"]
    for label, turns in answers.items():
        losses = turns[0]["losses"]
        off = [abs(one - other) / other for one, other in zip(losses, reference, strict=True)]
        notes.append(f"{shown}: loss of {label} {losses[0]:.6f} to {losses[-1]:.6f}, at most {max(off):.1e} off ours")
        if off[0] > SAME_LOSS:
            notes.append(f"{shown}: {label} has another loss in the first update, so its speed says nothing")
            continue
        yield from speed_rows(shown, label, answers, timed, "useful tokens/s", own)
        yield from room_rows(shown, label, turns)
        yield row(f"{shown}: loss of the last update", label, losses[-1], "nats/target", False)
