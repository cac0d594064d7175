"""What sharing prefixes and verifying drafts save, the same prompts with and without, in one process and one run.

    shared-prefix    prompts of one beginning of 1,024 tokens and 48 of their own: the beginning computed and attended
                     to once, beside once for every prompt; up to the first tokens, and for the tokens behind them
    editing          a text, and the same text up to its middle, to be gone on with: every drafter beside none
    plain            the beginnings of texts, sampled: what drafts cost where they cannot help

The model is a preset with random weights and a BPE of its own, or a folder with a model and a tokenizer; random weights
say how fast, but repeat themselves, so drafts are measured with a trained model. On the CPU one thread works, seconds
are those of the processor, and ways take turns; what is told of two ways is the median over the turns. The tokens of
all ways are compared.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from seqmill.errors import UserError
from seqmill.models import Engine, EngineSettings, Model, Request, Sampling, load
from seqmill.models.inference.drafting import DRAFTERS

from .support.arguments import require_documents, require_known
from .support.devices import one_thread, require_measured
from .support.generating import LONGEST, MODELS, model_and_documents, require_model
from .support.rows import Row, row

TURNS = 3
PROMPTS = {"cpu": 64, "cuda": 256}
PREFIX, OWN, BEHIND = 1024, 48, 40  # tokens of the shared-prefix case; the last prompt begins some steps late
EDITED, NEW = 384, 96  # tokens of a text that is gone on with, and behind it
AT_ONCE = 4  # sequences that drafts are measured with: many at a time fill a pass by themselves
SEED = 1

Ids = list[int]


@dataclass(frozen=True)
class Turn:
    """One way through all prompts, once."""

    first: float  # seconds up to the last first token
    behind: float  # seconds after that
    step: float  # seconds of a step that gives every sequence a token and reads no prompt; the median
    tokens: list[tuple[int, ...]]
    per_pass: float  # tokens that a sequence got in a pass behind its prompt


def run(
    data: Path | None = None,
    cases: Sequence[str] = (),
    device: str = "cpu",
    model: str | None = None,
    documents: int | None = None,
) -> dict[str, Any]:
    """Rows of the chosen cases.

    Args:
        data: a file or folder that `seqmill ingest` reads; default: examples/corpus.
        cases: of those above; default: all.
        device: "cpu" or "cuda".
        model: a preset, or a folder that `seqmill generate` reads; default: a small one on the CPU, 124m on CUDA.
        documents: how many prompts; default: 64 on the CPU, 256 on CUDA; an eighth of them for drafts.

    Raises:
        UserError: a case, model or device that does not exist, or too little data.
    """
    require_known(cases, CASES, "case")
    require_measured(device, MODELS, "generation is")
    count = require_documents(PROMPTS[device] if documents is None else documents)
    name = require_model(model or MODELS[device])
    with one_thread(device), tempfile.TemporaryDirectory() as folder:
        weights, read = model_and_documents(Path(folder), name, data, device)
        tokens = sum(map(len, read))
        if tokens <= LONGEST:
            raise UserError(f"--data {data}: has {tokens} tokens, more than {LONGEST} are needed")
        bench = Bench(load(weights, device), np.concatenate(read), count)
        rows, notes = list[Row](), list[str]()
        for case in cases or CASES:
            rows += CASES[case](bench, f"{Path(name).name}, {case}", notes)
        return {"rows": rows, "notes": notes}


@dataclass(frozen=True, eq=False)
class Bench:
    """What the cases are made of."""

    model: Model
    stream: np.ndarray  # int64: the tokens of all documents
    count: int  # prompts

    def stretches(self, count: int, tokens: int) -> list[Ids]:
        """Random places of the stream."""
        rng = np.random.default_rng(SEED)
        starts = rng.integers(0, len(self.stream) - tokens + 1, count)
        return [self.stream[start : start + tokens].tolist() for start in starts]


def shared_prefix(bench: Bench, shown: str, notes: list[str]) -> Iterator[Row]:
    """One beginning for all prompts."""
    prefix, *own = bench.stretches(1 + bench.count, max(PREFIX, OWN))
    prompts = [prefix[:PREFIX] + each[:OWN] for each in own]
    ways = {"once": EngineSettings(max_batch=bench.count, cache_tokens=_room(prompts, BEHIND))}
    ways["for every prompt"] = EngineSettings(
        max_batch=bench.count, cache_tokens=_room(prompts, BEHIND), prefix_cache=False
    )
    turns = _take_turns(bench.model, prompts, BEHIND, Sampling(), ways, shown, notes)
    for part, of in (("prompts", lambda turn: turn.first), ("a token of each behind", lambda turn: turn.step)):
        yield from _rows(f"{shown}: {part}", turns, of, "for every prompt")


def editing(bench: Bench, shown: str, notes: list[str]) -> Iterator[Row]:
    """A text, and its first half again."""
    texts = bench.stretches(max(1, bench.count // 8), EDITED)
    prompts = [text + text[: EDITED // 2] for text in texts]
    yield from _drafted(bench, prompts, Sampling(), shown, notes)


def plain(bench: Bench, shown: str, notes: list[str]) -> Iterator[Row]:
    """Texts that say nothing of what follows."""
    prompts = bench.stretches(max(1, bench.count // 8), EDITED // 4)
    yield from _drafted(bench, prompts, Sampling(0.8, top_k=50), shown, notes)


CASES: Mapping[str, Callable[[Bench, str, list[str]], Iterator[Row]]] = {
    "shared-prefix": shared_prefix,
    "editing": editing,
    "plain": plain,
}


def _drafted(bench: Bench, prompts: Sequence[Ids], sampling: Sampling, shown: str, notes: list[str]) -> Iterator[Row]:
    room = _room(prompts, NEW)
    ways = {
        draft or "none": EngineSettings(max_batch=AT_ONCE, cache_tokens=room, draft=draft)
        for draft in (None, *DRAFTERS)
    }
    turns = _take_turns(bench.model, prompts, NEW, sampling, ways, shown, notes)
    yield from _rows(f"{shown}: tokens behind prompts", turns, lambda turn: turn.behind, "none")
    for way, of_one in turns.items():
        yield row(f"{shown}: tokens of a pass", f"seqmill, {way}", of_one[0].per_pass, "tokens", True)


def _rows(
    shown: str, turns: Mapping[str, Sequence[Turn]], seconds: Callable[[Turn], float], base: str
) -> Iterator[Row]:
    for way, of_one in turns.items():
        yield row(shown, f"seqmill, {way}", median(map(seconds, of_one)), "s", False)
        if way != base:
            ratio = median(seconds(plain) / seconds(turn) for turn, plain in zip(of_one, turns[base], strict=True))
            yield row(f"{shown}, beside {base}", f"seqmill, {way}", ratio, "x", True)


def _take_turns(
    model: Model,
    prompts: Sequence[Ids],
    new: int,
    sampling: Sampling,
    ways: Mapping[str, EngineSettings],
    shown: str,
    notes: list[str],
) -> dict[str, list[Turn]]:
    for settings in ways.values():  # compiles kernels, and touches memory for the first time
        _turn(model, prompts[:2], 4, sampling, settings)
    turns: dict[str, list[Turn]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, settings in ways.items():
            turns[way].append(_turn(model, prompts, new, sampling, settings))
    expected = next(iter(turns.values()))[0].tokens
    for way, of_one in turns.items():
        other = sum(mine != theirs for mine, theirs in zip(expected, of_one[0].tokens, strict=True))
        if other:
            notes.append(f"{shown}: {other} of {len(prompts)} go on with other tokens, {way}")
    return turns


def _turn(model: Model, prompts: Sequence[Ids], new: int, sampling: Sampling, settings: EngineSettings) -> Turn:
    engine = Engine(model, settings)
    numbers = [
        engine.submit(Request(prompt=prompt, max_new_tokens=new, sampling=sampling, place=place))
        for place, prompt in enumerate(prompts)
    ]
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    first = behind = 0.0
    passes = 0
    full: list[float] = []
    begun: set[int] = set()
    while engine.busy:
        began = clock()
        events = engine.step()
        seconds = clock() - began
        given = [event.request for event in events if event.token is not None]
        if not given or not begun.issuperset(given):
            first += seconds
        else:
            behind += seconds
            passes += len(set(given))
            full += [seconds] * (len(set(given)) == len(prompts))
        begun.update(given)
    tokens = [(engine.results(number) or [])[0].tokens for number in numbers]
    per_pass = (sum(map(len, tokens)) - len(tokens)) / max(1, passes)
    return Turn(first, behind, median(full or [0.0]), tokens, per_pass)


def _room(prompts: Sequence[Ids], new: int) -> int:
    """Positions for all prompts, none of them shared, in whole pages."""
    return sum(len(prompt) + new + 64 for prompt in prompts)
