"""What a language model learns of text that was compressed first: windows of equal information beside bytes, BPE and
arithmetic codes, as in 'Training LLMs over Neurally Compressed Text' (Lester et al. 2024, arXiv 2404.03626).

Every arm gives the same passages to the same small decoder as ids. All models are trained for the same number of
floating-point operations, softmax included, and looked at a second time when all have seen as much text. Losses are in
bits per byte of held-out passages: every id and every end of a passage counts, over exactly the bytes of the text.
Vocabularies and byte models learn from one part of the documents, decoders from another, and a third is held out. What
the byte model of a code costs is not among the operations: it looks counts up. It must be weaker than the decoders, or
codes that no decoder can learn from look best: their bits per byte are the byte model's own.

    bytes, bpe, bpe-unsplit     bytes; BPE of 4,096 strings with the GPT-2 splitter, and without any
    ac, static-ac               one arithmetic code a passage by a byte model, or by frequencies of bytes; 8-bit ids
    eiw16, 32, 64, 128          windows of so many bits, ids of 8 bits; eiw16-never: the byte model goes on over windows
    eiw12, eiw12-...            windows of 12 bits, one id each, by every builder of dictionaries

--minutes is what training takes on one core of 25 GFLOP/s, so the same flags train on the same ids on any machine.
"""

import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from seqmill.errors import UserError
from seqmill.models.config import preset_config

from .support import corpus
from .support.arguments import require_known, require_training
from .support.devices import one_thread, require_measured
from .support.rows import Row, row
from .support.small_runs import Point, Stream, flops_per_token, train
from .support.window_arms import ARMS, Source

PASSAGE = 10_240  # bytes at most, as in the paper: documents one after the other, an empty line between
NOMINAL_FLOPS = {"cpu": 25e9, "cuda": 5e12}  # a second, which minutes are counted in
LARGER_MODEL_FROM = 60  # minutes
LOOKS = (0.25, 0.5, 1.0)  # at which parts of the training a model is looked at
UNIFORM = math.log(256)  # nats an id of 8 bits
UNLEARNED = 0.01  # nats: closer to uniform than that, nothing was learned (specification C8)
SIGNIFICANT = 3.0  # Welch's t from here on is called more than the spread over seeds
SPREADS = 10  # how many standard deviations below uniform is called learning


@dataclass(frozen=True)
class Sizes:
    """How much text each part has, and which model is trained, for a number of minutes."""

    learned: int  # bytes that vocabularies and byte models learn from
    trained: int  # bytes that decoders are trained on, repeated where that is not enough
    held_out: int  # bytes
    preset: str
    order: int  # of the byte model, which must be weaker than the decoders for them to have anything to learn

    @classmethod
    def of(cls, minutes: float, device: str) -> "Sizes":
        """The same for the same arguments."""

        def scaled(per_minute: int, least: int, most: int) -> int:
            return int(min(most, max(least, per_minute * minutes)))

        large = minutes >= LARGER_MODEL_FROM
        preset = "bytes-3m" if device == "cuda" else "bytes-0.8m" if large else "bytes-0.2m"
        return cls(
            scaled(300_000, 20_000, 30_000_000), scaled(80_000, 20_000, 60_000_000), scaled(5_000, 4_000, 2_000_000),
            preset,
            3 if large else 2,
        )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One arm: how it writes the text, and what its models came to, one of each seed."""

    arm: str
    vocab_size: int
    bytes_per_token: float  # of held-out text, ends of passages counted as tokens
    flops_per_byte: float  # of reading held-out text, softmax included
    flops_per_byte_of_body: float  # without it
    at_flops: list[Point]  # when all have spent as much
    at_bytes: list[Point]  # when all have seen as much text
    curves: list[list[Point]]

    @property
    def bits_per_byte(self) -> list[float]:
        """Of every seed, at equal operations."""
        return [point.bits_per_byte for point in self.at_flops]

    @property
    def bits_per_byte_at_bytes(self) -> list[float]:
        """Of every seed, at equal text."""
        return [point.bits_per_byte for point in self.at_bytes]

    @property
    def nats_per_id(self) -> list[float]:
        """Of every seed, at equal operations."""
        return [point.nats_per_id for point in self.at_flops]


Results = Mapping[str, Result]


def run(
    data: Path | None = None,
    arms: Sequence[str] = (),
    minutes: float = 60,
    seeds: int = 3,
    device: str = "cpu",
    out: Path | None = None,
) -> dict[str, Any]:
    """Rows for every arm, and in notes which of the paper's directions held.

    Args:
        data: a file or folder that `seqmill ingest` reads; of documents with a field lang only those in English are
            taken, if there are any. Default: examples/corpus.
        arms: of `ARMS`; default: all.
        minutes: of training, all arms and seeds together; see above.
        seeds: models of each arm.
        device: "cpu", one core, or "cuda".
        out: a folder for results.json, results.txt and results.png.

    Raises:
        UserError: an arm or a device that does not exist, nothing to train, or too little text.
    """
    require_known(arms, ARMS, "arm")
    require_measured(device, NOMINAL_FLOPS, "training is")
    require_training(minutes, seeds)
    sizes = Sizes.of(minutes, device)
    learned, trained, held_out = _parts(data or corpus.EXAMPLES, sizes)
    chosen = [name for name in ARMS if name in (arms or ARMS)]
    budget = minutes * 60 * NOMINAL_FLOPS[device] / (len(chosen) * seeds)
    with one_thread(device):  # sums are then taken in one order
        results = _experiment(
            chosen, Source(learned, sizes.order), trained, held_out, sizes.preset, budget, seeds, device
        )
    sizes_of = [f"{_size(part) / 1e6:.3f} MB" for part in (learned, trained, held_out)]
    text = min(point.bytes for point in results[chosen[0]].at_bytes)
    notes = [
        f"{seeds} seeds, {budget / 1e12:.3g} TFLOP each, model {sizes.preset}, byte model of order {sizes.order}; "
        f"vocabularies learned from {sizes_of[0]}, trained on {sizes_of[1]}, held out {sizes_of[2]}; equal text is "
        f"{text / 1e6:.3f} MB",
        *(f"{claim}: {verdict}" for claim, verdict in directions(results).items()),
    ]
    if out:
        _write(out, results, notes)
    return {"rows": [one for result in results.values() for one in _rows(result)], "notes": notes}


def _parts(data: Path, sizes: Sizes) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Passages to learn vocabularies from, to train on, and held out."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = corpus.english_texts(data, Path(scratch) / "documents")
    part = corpus.parts_of(texts)
    found = []  # seven sixteenths are for vocabularies and byte models, eight for decoders, and one is held out
    for which, size in ((part < 7, sizes.learned), (part >= 8, sizes.trained), (part == 7, sizes.held_out)):
        own = texts.filter(pa.array(which))
        if not len(own):
            raise UserError(f"--data {data}: {len(texts)} documents are too few to be divided; give more")
        found.append(passages([text.as_py() for text in corpus.even_sample(own, size)], size))
    return found[0], found[1], found[2]


def passages(texts: Sequence[str], most: int) -> list[bytes]:
    """Documents one after the other, an empty line between, cut between characters; at most so many bytes in all."""
    whole = "\n\n".join(texts).encode()[:most]
    found, start = [], 0
    while start < len(whole):
        stop = min(start + PASSAGE, len(whole))
        while stop < len(whole) and whole[stop] & 0xC0 == 0x80:
            stop -= 1
        found.append(whole[start:stop])
        start = stop
    found[-1] = found[-1].decode(errors="ignore").encode()  # `most` may lie within a character
    return found


def _experiment(
    arms: Sequence[str],
    source: Source,
    trained: Sequence[bytes],
    held_out: Sequence[bytes],
    preset: str,
    budget: float,
    seeds: int,
    device: str,
) -> dict[str, Result]:
    streams = {}
    for name in arms:
        arm = ARMS[name](source)
        streams[name] = tuple(Stream.of(arm.encode(part), _size(part), arm.ids) for part in (trained, held_out))
    tokens = {
        name: budget / flops_per_token(preset_config(preset, pair[0].vocab_size)) for name, pair in streams.items()
    }
    text = min(tokens[name] * pair[0].bytes_per_token for name, pair in streams.items())
    results = {}
    for name, (training, held) in streams.items():
        stops = {round(tokens[name] * look) for look in LOOKS} | {round(text / training.bytes_per_token)}
        curves = [list(train(training, held, preset, sorted(stops), seed, device)) for seed in range(seeds)]
        shape = preset_config(preset, training.vocab_size)
        results[name] = Result(
            name, training.vocab_size, held.bytes_per_token,
            flops_per_token(shape) / 3 / held.bytes_per_token,
            flops_per_token(shape, softmax=False) / 3 / held.bytes_per_token,
            [curve[-1] for curve in curves],
            [min(curve, key=lambda point: abs(point.bytes - text)) for curve in curves],
            curves,
        )  # fmt: skip
    return results


def _rows(result: Result) -> list[Row]:
    name, found = result.arm, []
    found.append(row("bytes a token, ends counted", name, result.bytes_per_token, "B", True))
    found.append(row("operations a byte, softmax included", name, result.flops_per_byte / 1e6, "MFLOP", False))
    found.append(row("operations a byte, without it", name, result.flops_per_byte_of_body / 1e6, "MFLOP", False))
    for case, values in (
        ("bits per byte at equal operations", result.bits_per_byte),
        ("bits per byte at equal text", result.bits_per_byte_at_bytes),
        ("bits per id, ends left out", [nats / math.log(2) for nats in result.nats_per_id]),
    ):
        found.append(row(case, name, statistics.fmean(values), "bits", False))
        if len(values) > 1:
            found.append(row(f"{case}, standard deviation", name, statistics.stdev(values), "bits", False))
    return found


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Welch's t of the means of `b` less `a` (1947): positive if `b` is greater. NaN with fewer than two values."""
    if len(a) < 2 or len(b) < 2:
        return math.nan
    spread = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    difference = statistics.fmean(b) - statistics.fmean(a)
    return difference / spread if spread else math.copysign(math.inf, difference) if difference else 0.0


def directions(results: Results) -> dict[str, str]:
    """What the paper leads one to expect, and whether it held here: verdicts of those whose arms were all run."""

    def bits(name: str) -> list[float]:
        return results[name].bits_per_byte

    def at_bytes(name: str) -> list[float]:
        return results[name].bits_per_byte_at_bytes

    def per_id(name: str) -> list[float]:
        return [nats / math.log(2) for nats in results[name].nats_per_id]

    claims: list[tuple[str, tuple[str, ...], Callable[[], str]]] = [
        (f"{name} is not learned", (name,), lambda name=name: _unlearned(results[name].nats_per_id))
        for name in ("ac", "static-ac", "eiw16-never")
    ]
    claims += [
        (f"{name} is learned", (name,), lambda name=name, uniform=uniform: _learned(per_id(name), uniform))
        for name, uniform in (("eiw16", 8.0), ("eiw12", 12.0))
    ]
    for what, measure, order in (
        ("bits per byte at equal text, one id a window below two", at_bytes, ("eiw12", "eiw16")),
        ("bits per id rise with the window", per_id, ("eiw16", "eiw32", "eiw64", "eiw128")),
        ("bits per byte, 128 before 64 before 32 bits", bits, ("eiw128", "eiw64", "eiw32")),
        ("bits per byte, 16 before 128 bits", bits, ("eiw16", "eiw128")),
        ("bits per byte, BPE before windows before bytes", bits, ("bpe", "eiw12", "bytes")),
        ("bits per byte, unsplit BPE before windows", bits, ("bpe-unsplit", "eiw12")),
        ("bits per byte, BPE with a splitter before one without", bits, ("bpe", "bpe-unsplit")),
        ("bits per byte, the fitted dictionary before the coder's", bits, ("eiw12-pairs", "eiw12")),
        ("bits per byte, the fitted dictionary before BPE", bits, ("eiw12-pairs", "bpe")),
        ("bits per byte, counts before topn before stopcell", bits, ("eiw12-counts", "eiw12-topn", "eiw12-reest")),
    ):
        claims.append((what, order, lambda measure=measure, order=order: _ordered({n: measure(n) for n in order})))
    return {claim: judge() for claim, needed, judge in claims if all(name in results for name in needed)}


def _unlearned(nats: Sequence[float]) -> str:
    gap = UNIFORM - statistics.fmean(nats)
    held = "held" if gap <= UNLEARNED else "did not hold"
    return f"{held} ({gap:+.4f} nats an id below uniform; {UNLEARNED} is the limit)"


def _learned(bits: Sequence[float], uniform: float) -> str:
    gap = uniform - statistics.fmean(bits)
    spread = statistics.stdev(bits) if len(bits) > 1 else math.nan
    if math.isnan(spread):
        return f"{'held' if gap > 0 else 'did not hold'} ({gap:+.4f} bits an id below uniform; one seed, no spread)"
    held = "held" if gap > SPREADS * spread else "did not hold"
    return f"{held} ({gap:+.4f} bits an id below uniform, standard deviation {spread:.4f})"


def _ordered(values: Mapping[str, Sequence[float]]) -> str:
    """Whether means ascend in the order given, and by how much more than seeds differ."""
    names = list(values)
    steps = [(a, b, statistics.fmean(values[b]) - statistics.fmean(values[a])) for a, b in itertools.pairwise(names)]
    tests = [welch(values[a], values[b]) for a, b, _ in steps]
    told = ", ".join(
        f"{a} to {b} {step:+.4f}" + ("" if math.isnan(t) else f" (t {t:+.1f})")
        for (a, b, step), t in zip(steps, tests, strict=True)
    )
    held = "held" if all(step > 0 for *_, step in steps) else "did not hold"
    unsure = sum(abs(t) < SIGNIFICANT for t in tests)  # none where a mean has no spread
    if unsure:
        held += f", {'in part ' if unsure < len(tests) else ''}within the spread over seeds"
    return f"{held} ({told})"


def table(results: Results) -> str:
    """The arms as lines of text, the fewest bits per byte first."""
    lines = [
        f"{'arm':<14}{'ids':>7}{'B/token':>9}{'MFLOP/B':>9}"
        f"{'bits/B':>9}{'sd':>8}{'same text':>11}{'sd':>8}{'bits/id':>9}"
    ]
    for result in sorted(results.values(), key=lambda one: statistics.fmean(one.bits_per_byte)):
        means = [statistics.fmean(values) for values in (result.bits_per_byte, result.bits_per_byte_at_bytes)]
        spreads = [
            f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
            for values in (result.bits_per_byte, result.bits_per_byte_at_bytes)
        ]
        per_id = statistics.fmean(result.nats_per_id) / math.log(2)
        lines.append(
            f"{result.arm:<14}{result.vocab_size:>7}{result.bytes_per_token:>9.3f}{result.flops_per_byte / 1e6:>9.3f}"
            f"{means[0]:>9.4f}{spreads[0]:>8}{means[1]:>11.4f}{spreads[1]:>8}{per_id:>9.4f}"
        )
    return "\n".join(lines) + "\n"


def _write(out: Path, results: Results, notes: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = {"results": [asdict(result) for result in results.values()], "notes": list(notes)}
    (out / "results.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "results.txt").write_text(table(results) + "\n" + "\n".join(notes) + "\n")
    _plot(out / "results.png", results)


def _plot(path: Path, results: Results) -> None:
    """Bits per byte over operations, the mean of all seeds and their range."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="training, TFLOP with softmax", ylabel="held-out bits per byte")
    styles = ("-", "--", ":")
    for place, result in enumerate(results.values()):
        flops = [point.flops / 1e12 for point in result.curves[0]]
        bits = np.array([[point.bits_per_byte for point in curve] for curve in result.curves])
        lines = axes.plot(flops, bits.mean(axis=0), styles[place // 10 % 3], marker=".", label=result.arm)
        axes.fill_between(flops, bits.min(axis=0), bits.max(axis=0), color=lines[0].get_color(), alpha=0.2, lw=0)
    figure.legend(fontsize="small", loc="outside right upper")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _size(texts: Sequence[bytes]) -> int:
    return sum(map(len, texts))
