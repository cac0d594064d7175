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
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from seqmill.errors import UserError

from .support.arguments import require_documents, require_known
from .support.contenders import Contender, find_contenders, room_rows, speed_rows, take_turns
from .support.devices import require_measured
from .support.generating import LONGEST, MODELS, Ids, model_and_documents, require_model
from .support.peers import GENERATORS
from .support.rows import Row, row

PROMPTS = {"cpu": 64, "cuda": 512}
BATCH = {"cpu": 16, "cuda": 64}  # prompts that go through padded together
TURNS = 3
SEED = 1


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
    require_measured(device, MODELS, "prompts are")
    require_known(cases, CASES, "case")
    require_known(peers, GENERATORS, "peer")
    count = require_documents(PROMPTS[device] if documents is None else documents)
    name = require_model(model or MODELS[device])
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        weights, read = model_and_documents(scratch, name, data, device)
        if not read:
            raise UserError(f"--data {data}: there is no document with a token; give more text")
        contenders = find_contenders(scratch, "prefill", peers, notes)
        for case in cases or CASES:
            work = write_work(scratch / case / "work", weights, CASES[case](read, count), BATCH[device])
            rows += _case(scratch / case, f"{Path(name).name}, {case}", contenders, work, device, notes)
    return {"rows": rows, "notes": notes}


def write_work(work: Path, weights: Path, workload: Workload, batch: int) -> Path:
    """The folder that drivers read (peers/prompts.py)."""
    work.mkdir(parents=True)
    lengths = [len(prompt) for prompt in workload.prompts]
    np.savez(work / "prompts.npz", tokens=np.concatenate(list(workload.prompts)), lengths=lengths)
    settings = {"weights": str(weights), "new_tokens": workload.new_tokens, "batch": batch}
    (work / "work.json").write_text(json.dumps(settings))
    return work


def _case(
    folder: Path, shown: str, contenders: Sequence[Contender], work: Path, device: str, notes: list[str]
) -> Iterator[Row]:
    """All figures of one case."""
    found = take_turns(contenders, TURNS, folder, device == "cpu", "generate", work, device)
    notes += [f"{shown}: {label} could not be measured: {error}" for label, error in found.failed.items()]
    with np.load(work / "prompts.npz") as arrays:
        lengths = arrays["lengths"]
    notes.append(
        f"{shown}: {len(lengths)} prompts of {lengths.min()} to {lengths.max()} tokens, {lengths.sum()} in all; "
        f"threads {found.threads}; {TURNS} turns each"
    )
    yield from figures(shown, found.whole, int(lengths.sum()), notes)


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
        yield from speed_rows(shown, label, answers, prompt_tokens, "prompt tokens/s", own)
        if label != own:
            yield row(f"{shown}: other tokens than ours", label, other, "prompts", False)
        for percent in (50, 95):
            wait = median(float(np.percentile(found["first_seconds"], percent)) for found in turns)
            yield row(f"{shown}: time to first token, p{percent}", label, wait, "s", False)
        yield from room_rows(shown, label, turns)
