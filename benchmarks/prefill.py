"""Prompts of many lengths beside transformers: the same weights, prompts and likeliest first tokens.

    mmlu-like     questions with four answers: log-normal lengths, median 90 tokens, 30 to 1,024
    log-normal    median 200 tokens, 8 to 2,048
    uniform       100 to 1,024 tokens
    corpus        the documents of --data as they are, up to 2,048 tokens

Prompts are stretches of the tokens of --data. The model is a preset with random weights and a BPE of its own, or a
folder with a model and a tokenizer. transformers runs `generate` padded on the left, in batches as they come or of
similar lengths, and `generate_batch`. Only tokens of prompts count as processed. The time to a first token is that
from handing over all prompts. On the CPU all have one thread, and seconds are those of the processor; systems take
turns, each time in a process of its own. Speeds are medians of the turns, and how many times as fast one is as another
is the median over the turns.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.models import Model, load
from seqmill.models.checkpoint import require_device
from seqmill.models.config import PRESETS, preset_config
from seqmill.models.huggingface import export_huggingface, is_huggingface
from seqmill.pipeline.model_steps import tokenizer_of
from seqmill.tokenizers_ext import Encoder, train_bpe
from seqmill.tokenizers_ext import load as load_tokenizer
from seqmill.tokenizers_ext.subword import SubwordEncoder

from .support import corpus
from .support.peers import GENERATORS, PeerError, System, installed, ours
from .support.rows import Row, row

MODELS = {"cpu": "tiny", "cuda": "124m"}
VOCABULARY = {"cpu": 8192, "cuda": 32_768}
PROMPTS = {"cpu": 64, "cuda": 512}
BATCH = {"cpu": 16, "cuda": 64}  # prompts that go through padded together
TURNS = 3
MOST_BYTES = 4_000_000  # of text
LONGEST = 2048  # tokens
SEED = 1

Ids = np.ndarray


@dataclass(frozen=True)
class Workload:
    """What all systems are given."""

    prompts: Sequence[Ids]
    new_tokens: int = 1  # of each prompt


Case = Callable[[Sequence[Ids], int], Workload]  # (documents, how many prompts)


def of_lengths(draw: Callable[[np.random.Generator, int], np.ndarray]) -> Case:
    """Stretches of the documents, laid end to end, with random lengths."""

    def make(documents: Sequence[Ids], count: int) -> Workload:
        rng = np.random.default_rng(SEED)
        stream = np.concatenate(documents)
        lengths = np.minimum(draw(rng, count).astype(np.int64), len(stream))
        starts = rng.integers(0, len(stream) - lengths + 1)
        return Workload([stream[start : start + size] for start, size in zip(starts, lengths, strict=True)])

    return make


def own_documents(documents: Sequence[Ids], count: int) -> Workload:
    """Some of the documents, evenly over the corpus."""
    chosen = np.linspace(0, len(documents) - 1, min(count, len(documents))).astype(np.int64)
    return Workload([documents[k][:LONGEST] for k in np.random.default_rng(SEED).permutation(chosen)])


CASES: Mapping[str, Case] = {
    "mmlu-like": of_lengths(lambda rng, count: rng.lognormal(np.log(90), 0.7, count).clip(30, 1024)),
    "log-normal": of_lengths(lambda rng, count: rng.lognormal(np.log(200), 1.0, count).clip(8, LONGEST)),
    "uniform": of_lengths(lambda rng, count: rng.integers(100, 1025, count)),
    "corpus": own_documents,
}


@dataclass(frozen=True)
class Contender:
    """One way of one system to go through prompts."""

    system: System
    variant: str
    label: str


def run(
    data: Path | None = None,
    cases: Sequence[str] = (),
    device: str = "cpu",
    model: str | None = None,
    documents: int | None = None,
    peers: Sequence[str] = GENERATORS,
) -> dict[str, Any]:
    """Rows of the chosen cases, and notes on other first tokens and on what could not be measured.

    Args:
        data: a file or folder that `seqmill ingest` reads; default: examples/corpus.
        cases: of those above; default: all.
        device: "cpu" or "cuda".
        model: a preset, or a folder that `seqmill generate` reads; default: a small one on the CPU, 124m on CUDA.
        documents: how many prompts; default: 64 on the CPU, 512 on CUDA.
        peers: of `GENERATORS`.

    Raises:
        UserError: a case, peer, model or device that does not exist, or data without a document.
    """
    if device not in MODELS:
        raise UserError(f"--device {device}: prompts are measured on {' and '.join(MODELS)}")
    for given, known, what in ((cases, tuple(CASES), "case"), (peers, GENERATORS, "peer")):
        for name in given:
            if name not in known:
                raise UserError(f"there is no {what} {name!r}; choose from {', '.join(known)}")
    count = PROMPTS[device] if documents is None else documents
    if count < 1:
        raise UserError(f"--documents {count}: there is nothing to read; give 1 or more")
    require_device(device)
    name = model or MODELS[device]
    if name not in PRESETS and not Path(name).is_dir():
        raise UserError(f"--model {name}: neither a folder nor a preset; presets are {', '.join(PRESETS)}")
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        texts = corpus.even_sample(
            corpus.texts_of(corpus.ingested(data or corpus.EXAMPLES, scratch / "all")), MOST_BYTES
        )
        weights, encoder = prepare_model(scratch / "model", name, texts, VOCABULARY[device])
        read = [np.array(ids, np.int64) for ids in encoder.encode(texts).to_pylist() if ids]
        if not read:
            raise UserError(f"--data {data}: there is no document with a token; give more text")
        contenders = list(_contenders(scratch, peers, notes))
        for case in cases or CASES:
            work = write_work(scratch / case / "work", weights, CASES[case](read, count), BATCH[device])
            rows += _case(scratch / case, f"{Path(name).name}, {case}", contenders, work, device, notes)
    return {"rows": rows, "notes": notes}


def prepare_model(folder: Path, name: str, texts: pa.Array, vocab_size: int) -> tuple[Path, Encoder]:
    """A folder that transformers and we read, and the tokenizer of a model.

    Args:
        name: a preset, which gets random weights and a BPE of `texts` with `vocab_size` ids; or a folder.
    """
    if name in PRESETS:
        encoder = SubwordEncoder(train_bpe([texts], vocab_size))
        export_huggingface(Model(preset_config(name, encoder.vocab_size), SEED), folder)
        return folder, encoder
    given = Path(name).absolute()
    if not is_huggingface(given):
        export_huggingface(load(given), folder)
    return given if is_huggingface(given) else folder, load_tokenizer(tokenizer_of(given))


def write_work(work: Path, weights: Path, workload: Workload, batch: int) -> Path:
    """The folder that drivers read (peers/prompts.py)."""
    work.mkdir(parents=True)
    lengths = [len(prompt) for prompt in workload.prompts]
    np.savez(work / "prompts.npz", tokens=np.concatenate(list(workload.prompts)), lengths=lengths)
    settings = {"weights": str(weights), "new_tokens": workload.new_tokens, "batch": batch}
    (work / "work.json").write_text(json.dumps(settings))
    return work


def _contenders(scratch: Path, peers: Sequence[str], notes: list[str]) -> Iterator[Contender]:
    """Every way of every system that is there; ours first."""
    for name in ("seqmill", *peers):
        try:
            system = replace(ours() if name == "seqmill" else installed(name), tasks="prefill")
            told = system.ask(scratch / f"describe-{name}", "describe").result
        except PeerError as error:
            notes.append(str(error))
            continue
        for variant in told["variants"]:
            label = name if name == "seqmill" else f"{name} {told['version']} {variant}"
            yield Contender(system, variant, label)


def _case(
    folder: Path, shown: str, contenders: Sequence[Contender], work: Path, device: str, notes: list[str]
) -> Iterator[Row]:
    """All figures of one case."""
    answers: dict[str, list[dict[str, Any]]] = {}
    failed: set[str] = set()
    for turn in range(TURNS):
        for one in contenders:
            if one.label in failed:
                continue
            system = replace(one.system, one_core=device == "cpu")
            at = folder / f"{one.label.replace(' ', '-')}-{turn}"
            try:
                answer = system.ask(at, "generate", one.variant, work, device)
            except PeerError as error:
                failed.add(one.label)
                notes.append(f"{shown}: {one.label} could not be measured: {error}")
                continue
            answers.setdefault(one.label, []).append(answer.result)
    with np.load(work / "prompts.npz") as arrays:
        lengths = arrays["lengths"]
    threads = sorted({found["threads"] for of_one in answers.values() for found in of_one})
    notes.append(
        f"{shown}: {len(lengths)} prompts of {lengths.min()} to {lengths.max()} tokens, {lengths.sum()} in all; "
        f"threads {', '.join(map(str, threads))}; {TURNS} turns each"
    )
    measured = {label: found for label, found in answers.items() if label not in failed}
    yield from figures(shown, measured, int(lengths.sum()), notes)


def figures(
    shown: str, answers: Mapping[str, Sequence[Mapping[str, Any]]], prompt_tokens: int, notes: list[str]
) -> Iterator[Row]:
    """The rows of a case from what drivers answered in their turns, ours first."""
    own = next(iter(answers), None)
    if own is None:
        return
    reference = answers[own][0]["tokens"]
    for label, turns in answers.items():
        other = sum(mine != theirs for mine, theirs in zip(reference, turns[0]["tokens"], strict=True))
        if other:
            notes.append(
                f"{shown}: {other} of {len(reference)} prompts go on with other tokens in {label} than in ours"
            )
        speed = median(prompt_tokens / found["seconds"] for found in turns)
        yield row(f"{shown}: speed", label, speed, "prompt tokens/s", True)
        if label != own:
            ratio = median(found["seconds"] / ours["seconds"] for found, ours in zip(turns, answers[own], strict=True))
            yield row(f"{shown}: {own} beside this one", label, ratio, "x", True)
            yield row(f"{shown}: other tokens than ours", label, other, "prompts", False)
        for percent in (50, 95):
            wait = median(float(np.percentile(found["first_seconds"], percent)) for found in turns)
            yield row(f"{shown}: time to first token, p{percent}", label, wait, "s", False)
        yield row(f"{shown}: padding", label, 100 * turns[0]["padding_share"], "% of places", False)
        yield row(f"{shown}: peak memory", label, max(found["peak_bytes"] for found in turns) / 1e6, "MB", False)
