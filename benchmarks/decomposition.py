"""Dataset Decomposition (Pouransari et al. 2024, arXiv 2405.13226) beside packed rows and concatenation: what a small
model learns from as many tokens, and in as much time.

    concat-crossing   documents one after the other, cut into rows of 8,192 tokens; attention goes across documents
    concat            the same rows, every document apart
    packed            best-fit: rows of 8,192 that cut no document that fits, every document apart
    decomposition     pieces of 64 to 8,192 tokens, one length an update, by the curriculum grow-p2

Documents, their shuffled order, tokenizer (a BPE of 4,096 learned from the training text), first weights, peak rate and
tokens an update are the same. First every arm reads as many tokens, to within half an update. Then every arm but the
slowest begins anew and gets the updates that take it as long as the slowest one: rate, curriculum and data are planned
for the longer run, which reads further documents, and none twice before all are used up.

Bits per byte are of held-out documents, each read alone; a sixteenth of all are held out, by a hash of their text.
Seconds are those of the processor, or on a GPU of the clock, from the start of training to its last checkpoint.

--minutes is what all arms, both parts and all seeds train together on one core of 60 GFLOP/s, so the same flags train
on the same ids in the first part on any machine. Reading documents and held-out losses take their time besides.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.models import ModelConfig, TrainConfig, train
from seqmill.models.config import preset_config
from seqmill.models.evaluation import EvaluationConfig, HeldOut
from seqmill.models.training.flops import training_flops
from seqmill.packing import PackedDataset, load_schedule
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.pack import BucketConfig, PackConfig, pack
from seqmill.pipeline.progress import Silent

from .support import corpus
from .support.arguments import require_known, require_training
from .support.devices import one_thread, require_measured
from .support.rows import Row, row
from .support.token_folders import divided_tokens, first_tokens, joined, read_tokens, write_tokens

VOCABULARY = 4096
ROW, SHORTEST = 8192, 64  # tokens of the longest and of the shortest rows
UPDATE = 2 * ROW  # tokens that the rows of an update have room for
MOST_CYCLES = 8  # of the curriculum, as in the paper
LONG = 1024  # tokens from which on a held-out document is called long
HELD_OUT = 0  # the part of documents that is
NOMINAL_FLOPS = {"cpu": 60e9, "cuda": 5e12}  # a second, which minutes are counted in
CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": time.process_time, "cuda": time.perf_counter}
LARGER_MODEL_FROM = 600  # minutes: with fewer it would have too few updates to learn more than how often ids are
EVALUATED = 40_000  # bytes of held-out text for every minute, about
LEAST_EVALUATED, MOST_EVALUATED = 200_000, 1_000_000
PHASES = ("equal tokens", "equal time")


@dataclass(frozen=True)
class Arm:
    """How documents become rows."""

    packing: Callable[[int], PackConfig]  # by the updates of the run
    crossing: bool = False  # attention goes across documents: for the packer the whole stream is one


def _buckets(updates: int) -> PackConfig:
    """Cycles in which every bucket has about two updates."""
    lengths = (ROW // SHORTEST).bit_length()
    cycles = max(1, min(MOST_CYCLES, updates // (2 * lengths)))
    return PackConfig(buckets=BucketConfig(SHORTEST, ROW, curriculum="grow-p2", cycles=cycles, step_tokens=UPDATE))


ARMS: Mapping[str, Arm] = {
    "concat-crossing": Arm(lambda updates: PackConfig(seq_len=ROW, algorithm="concat"), crossing=True),
    "concat": Arm(lambda updates: PackConfig(seq_len=ROW, algorithm="concat")),
    "packed": Arm(lambda updates: PackConfig(seq_len=ROW)),
    "decomposition": Arm(_buckets),
}


@dataclass(frozen=True)
class Work:
    """What all arms share."""

    scratch: Path
    tokens: Path  # folder of all documents to train on, with their tokenizer
    documents: pa.Table  # the same, in the order in which they are used
    held_out: Path  # tokens folder whose sources are "short" and "long"
    settings: Mapping[str, Any]  # of every training

    @property
    def lengths(self) -> np.ndarray:
        """int64[documents], tokens."""
        return pc.list_value_length(self.documents["input_ids"]).to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Outcome:
    """One trained model."""

    arm: str
    seed: int
    updates: int
    tokens: int  # that it read
    targets: int  # that it was to predict
    padding: float  # share of the room of all updates
    seconds: float
    bits_per_byte: float
    by_length: Mapping[str, float]  # the same of "short" and "long" documents, where there are any


Results = Mapping[str, Mapping[str, Sequence[Outcome]]]  # by phase and arm: one of each seed


def run(
    data: Path | None = None,
    arms: Sequence[str] = (),
    minutes: float = 60,
    seeds: int = 3,
    model: str | None = None,
    device: str = "cpu",
    out: Path | None = None,
) -> dict[str, Any]:
    """Rows for every arm, first at equal tokens and then at equal time.

    Args:
        data: a file or folder that `seqmill ingest` reads; of documents with a field lang only those in English are
            taken, if there are any. Default: examples/corpus.
        arms: of `ARMS`; default: all.
        minutes: of training, all arms and seeds together; see above.
        seeds: models of each arm.
        model: a preset; default: tiny from 600 minutes on, below that bytes-0.2m.
        device: "cpu", one core, or "cuda".
        out: a folder for results.json and results.txt.

    Raises:
        UserError: an arm, a preset or a device that does not exist, nothing to train, or too little text.
    """
    require_known(arms, ARMS, "arm")
    require_measured(device, CLOCKS, "training is")
    require_training(minutes, seeds)
    preset = model or ("tiny" if minutes >= LARGER_MODEL_FROM else "bytes-0.2m")
    chosen = [name for name in ARMS if name in (arms or ARMS)]
    shape = preset_config(preset, VOCABULARY)
    evaluated = int(min(MOST_EVALUATED, max(LEAST_EVALUATED, EVALUATED * minutes)))
    settings = {"model": preset, "device": device, "batch_tokens": UPDATE, "compile": "off", "eval_bytes": None}
    with one_thread(device), tempfile.TemporaryDirectory() as scratch:
        work = prepare(Path(scratch), data or corpus.EXAMPLES, evaluated, settings)
        budget = 60 * minutes / seeds * NOMINAL_FLOPS[device]
        results = _experiment(work, chosen, updates_of(chosen, work.lengths, shape, budget), seeds)
        notes = _notes(work, results, shape)
    if out:
        _write(out, results, notes)
    return {"rows": list(_rows(results)), "notes": notes}


def prepare(scratch: Path, data: Path, evaluated: int, settings: Mapping[str, Any]) -> Work:
    """Documents to train on, shuffled, and held-out ones.

    Args:
        evaluated: bytes of held-out text, about.
        settings: of every training.

    Raises:
        UserError: one part has no documents, or those to train on do not fill an update.
    """
    training, held_out = divided_tokens(scratch, data, VOCABULARY, HELD_OUT, evaluated)
    documents, others = read_tokens(training), read_tokens(held_out)
    order = np.random.default_rng(0).permutation(len(documents))
    is_long = pc.greater_equal(pc.list_value_length(others["input_ids"]), LONG)
    place = others.schema.get_field_index("source")
    others = others.set_column(place, "source", pc.if_else(is_long, "long", "short"))  # losses are told by source
    classes = write_tokens(scratch / "held-out-by-length", held_out, others)
    work = Work(scratch, training, documents.take(pa.array(order)), classes, settings)
    if (found := int(work.lengths.sum())) < UPDATE:
        raise UserError(f"--data {data}: {found} tokens to train on do not fill an update of {UPDATE}; give more text")
    return work


def pack_arm(work: Work, name: str, updates: int) -> Path:
    """A packed folder for a run of so many updates: of the first documents that fill them, or of all."""
    arm, packed = ARMS[name], work.scratch / f"{name}-{updates}"
    documents = first_tokens(work.documents, updates * UPDATE)
    used = joined(documents) if arm.crossing else documents
    tokens = write_tokens(work.scratch / f"{packed.name}-tokens", work.tokens, used)
    pack(tokens, arm.packing(updates), packed, LocalExecutor(1), Silent())
    return packed


def updates_of(arms: Sequence[str], lengths: np.ndarray, shape: ModelConfig, budget: float) -> int:
    """Updates at equal tokens, such that both parts together take about so many floating-point operations."""
    rest, tokens = lengths % ROW, int(lengths.sum())
    apart = int(((lengths - rest) * ROW + rest**2).sum())
    each = [training_flops(shape, tokens, tokens * ROW if ARMS[name].crossing else apart) / tokens for name in arms]
    return max(2, round(budget / (sum(each) + (len(each) - 1) * max(each)) / UPDATE))


def updates_in_time(updates: int, seconds: float, budget: float) -> int:
    """Updates that take as long as the budget, when `updates` took `seconds`."""
    return max(updates, round(updates * budget / seconds))


def updates_that_read(packed: Path, tokens: int, seed: int) -> tuple[int, int]:
    """Updates that read about so many tokens, and how many these read: some updates are short."""
    schedule = open_manifest(packed, "packed").get("schedule")
    dataset = PackedDataset(
        packed,
        batch_rows=UPDATE // ROW,
        seed=seed,
        epochs=None,
        schedule=load_schedule(packed / schedule["file"]) if schedule else None,
    )
    read = 0
    for step in itertools.count():
        if read >= tokens - UPDATE // 2:
            return step, read
        read += len(dataset.batch_at(step)["input_ids"])
    raise AssertionError("a dataset without an end has ended")


def _experiment(work: Work, arms: Sequence[str], updates: int, seeds: int) -> dict[str, dict[str, list[Outcome]]]:
    """Both parts; the slowest arm is trained once for both."""
    warm_up = TrainConfig(**work.settings, steps=1)  # takes in what the first training alone has to compile and load
    _seconds_of_training(pack_arm(work, arms[0], 1), work.scratch / "warm-up", warm_up)
    equal_tokens = {name: _train_arm(work, name, updates, seeds) for name in arms}
    seconds = {name: statistics.fmean(one.seconds for one in found) for name, found in equal_tokens.items()}
    slowest = max(seconds, key=seconds.__getitem__)
    longer = {name: updates_in_time(updates, seconds[name], seconds[slowest]) for name in arms}
    equal_time = {
        name: equal_tokens[name] if longer[name] == updates else _train_arm(work, name, longer[name], seeds)
        for name in arms
    }
    return dict(zip(PHASES, (equal_tokens, equal_time), strict=True))


def _train_arm(work: Work, name: str, updates: int, seeds: int) -> list[Outcome]:
    packed = pack_arm(work, name, updates)
    return [_train(work, name, packed, updates * UPDATE, seed) for seed in range(seeds)]


def _train(work: Work, name: str, packed: Path, tokens: int, seed: int) -> Outcome:
    """Train on so many tokens, and look at the model when the clock has stopped."""
    updates, read = updates_that_read(packed, tokens, seed)
    config = TrainConfig(**work.settings, steps=updates, seed=seed, checkpoint_every=updates)
    folder = work.scratch / f"{packed.name}-seed-{seed}"
    seconds = _seconds_of_training(packed, folder, config)
    targets = train(packed, folder, replace(config, eval_tokens=str(work.held_out))).tokens_seen
    held_out = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
    by_length = {length: told["bits_per_byte"] for length, told in held_out["by_source"].items()}
    padding = 1 - read / (updates * UPDATE)
    return Outcome(name, seed, updates, read, targets, padding, seconds, held_out["bits_per_byte"], by_length)


def _seconds_of_training(packed: Path, out: Path, config: TrainConfig) -> float:
    clock, laps = CLOCKS[config.device], []
    began = clock()
    train(packed, out, config, progress=lambda _: laps.append(clock()))
    return laps[-1] - began


FIGURES: Mapping[str, tuple[Callable[[Outcome], float | None], str, bool]] = {
    "held-out bits per byte": (lambda one: one.bits_per_byte, "bits", False),
    "the same of short documents": (lambda one: one.by_length.get("short"), "bits", False),
    "the same of long documents": (lambda one: one.by_length.get("long"), "bits", False),
    "training": (lambda one: one.seconds, "s", False),
    "speed": (lambda one: one.tokens / one.seconds, "tokens/s", True),
    "tokens": (lambda one: one.tokens, "tokens", True),
    "targets": (lambda one: one.targets, "tokens", True),
    "updates": (lambda one: one.updates, "updates", True),
    "padding": (lambda one: 100 * one.padding, "% of places", False),
}
"""What is told of an arm: how it is found, its unit, and whether more is better."""


def _values(outcomes: Sequence[Outcome], figure: str) -> list[float]:
    """One of each seed; none where no held-out document is of the class."""
    return [value for value in map(FIGURES[figure][0], outcomes) if value is not None]


def _rows(results: Results) -> Iterator[Row]:
    for phase, arms in results.items():
        for (name, outcomes), (figure, (_, unit, is_better)) in itertools.product(arms.items(), FIGURES.items()):
            values = _values(outcomes, figure)
            if values:
                yield row(f"{phase}: {figure}", name, statistics.fmean(values), unit, is_better)
            if len(values) > 1 and unit in ("bits", "s"):
                yield row(f"{phase}: {figure}, standard deviation", name, statistics.stdev(values), unit, False)


def _notes(work: Work, results: Results, shape: ModelConfig) -> list[str]:
    held_out = HeldOut.open(work.held_out, EvaluationConfig(context=ROW)).counts()
    available = int(work.lengths.sum())
    classes = (f"{one.documents} {name} documents of {one.bytes:,} bytes" for name, one in held_out.items())
    notes = [
        f"model {work.settings['model']} of {shape.parameters:,} parameters; {len(work.documents):,} documents of "
        f"{available:,} tokens to train on, updates of {UPDATE:,} tokens; held out {', '.join(classes)}; long ones "
        f"have {LONG:,} tokens or more"
    ]
    for phase, arms in results.items():
        first = {name: outcomes[0] for name, outcomes in arms.items()}
        told = (f"{name} {one.updates} updates, {one.tokens:,} tokens" for name, one in first.items())
        notes.append(f"{phase}: {'; '.join(told)}")
        again = [name for name, one in first.items() if one.tokens > available]
        if again:
            notes.append(f"{phase}: documents were used up and read again by {', '.join(again)}")
    return notes


def table(results: Results) -> str:
    """A line for each figure, the mean over the seeds; a column for each arm."""
    lines = []
    for phase, arms in results.items():
        lines.append(f"{phase:<40}" + "".join(f"{name:>17}" for name in arms))
        for figure, (_, unit, _) in FIGURES.items():
            found = [_values(outcomes, figure) for outcomes in arms.values()]
            digits = 4 if unit == "bits" else 1
            shown = [f"{statistics.fmean(values):,.{digits}f}" if values else "-" for values in found]
            lines.append(f"  {figure + ', ' + unit:<38}" + "".join(f"{text:>17}" for text in shown))
    return "\n".join(lines) + "\n"


def _write(out: Path, results: Results, notes: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = {
        phase: {name: [asdict(one) for one in found] for name, found in arms.items()} for phase, arms in results.items()
    }
    (out / "results.json").write_text(json.dumps({**whole, "notes": list(notes)}, indent=1) + "\n")
    (out / "results.txt").write_text(table(results) + "\n" + "\n".join(notes) + "\n")
