"""The pack stage: one plan over the lengths of the whole corpus, then shards of packed rows, each its own unit.

With buckets, the plan is a decomposition, a shard's rows are of one bucket, and the folder gets a bucket schedule.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, open_manifest, write_manifest
from seqmill.packing import (
    Buckets,
    PackPlan,
    RowTotals,
    TokenStore,
    decompose,
    load_plan,
    make_schedule,
    pack_settings,
    packed_manifest_entries,
    plan,
    save_plan,
    save_schedule,
    write_rows,
)
from seqmill.packing.buckets import LEFTOVERS, OVERLONG, check_lengths
from seqmill.packing.curriculum import SCHEDULE, check_settings
from seqmill.packing.pack_plan import ALGORITHM, MAX_CAPACITY, check_algorithm
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    file_reference,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.settings import build
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, describe_tokenizer, put_tokenizer
from seqmill.storage import hash_file
from seqmill.tokenizers_ext import load

PLAN = "plan.arrow"


@dataclass(frozen=True)
class BucketConfig:
    """`[pack.buckets]`: documents into pieces of power-of-two length (Dataset Decomposition), and their curriculum."""

    shortest: int = 256  # tokens of the shortest rows; shorter ends of documents are leftovers
    longest: int = 8192  # tokens of the longest rows
    overlong: str = "longest"  # pieces of longer documents: "longest", "equal_tokens" or "seeded_random"
    leftovers: str = "carry_to_packer"  # or "drop", or "pad": a row for each
    curriculum: str = "grow-p2"  # or "uniform", "grow-linear", "natural"
    cycles: int = 8  # of the curriculum in one pass
    step_tokens: int = 1 << 19  # room of a training step, of whichever bucket: a multiple of `longest`

    def __post_init__(self) -> None:
        check_lengths(self.shortest, self.longest, MAX_CAPACITY)
        if self.overlong not in OVERLONG:
            raise UserError(f"pack.buckets.overlong = {self.overlong!r}: choose one of {', '.join(OVERLONG)}")
        if self.leftovers not in LEFTOVERS:
            raise UserError(f"pack.buckets.leftovers = {self.leftovers!r}: choose one of {', '.join(LEFTOVERS)}")
        check_settings(self.longest, self.step_tokens, self.curriculum, self.cycles)


def bucket_config(bounds: str, **settings: Any) -> BucketConfig:
    """A configuration from "SHORTEST:LONGEST", as on the command line.

    Raises:
        UserError: `bounds` is something else, or a setting is impossible.
    """
    shortest, _, longest = bounds.partition(":")
    if not (shortest.isdecimal() and longest.isdecimal()):
        raise UserError(f"buckets {bounds!r}: write SHORTEST:LONGEST in tokens, such as 256:8192")
    return BucketConfig(shortest=int(shortest), longest=int(longest), **settings)


@dataclass(frozen=True)
class PackConfig:
    """`[pack]`: documents into rows of equal room, or with `buckets` of several."""

    seq_len: int = 2048  # tokens that a row has room for, unless there are buckets
    overflow: str = "split"  # longer documents: "split", "truncate", "drop" or "error"
    seed: int = 0  # of the order of rows, and of all draws for buckets
    algorithm: str = ALGORITHM  # or "windowed", "concat", "first-fit", which keep the order of the corpus
    window: int | None = None  # documents that "windowed" packs together; None: 65536
    shard_tokens: int = 1 << 26  # room of one output file, in tokens
    buckets: BucketConfig | None = None  # rows of power-of-two lengths

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise UserError(f"pack.seq_len = {self.seq_len}: a row needs room for at least 1 token")
        check_algorithm(self.algorithm, self.window, self.overflow)
        if self.buckets and self.algorithm != ALGORITHM:
            raise UserError(f"pack.algorithm = {self.algorithm!r} with buckets, which have their own; leave one away")
        if self.buckets and self.overflow != "split":
            raise UserError(
                f"pack.overflow = {self.overflow!r}: buckets cut every document; leave it at 'split', or take "
                "pack.buckets away"
            )
        name, longest = ("buckets.longest", self.buckets.longest) if self.buckets else ("seq_len", self.seq_len)
        if self.shard_tokens < longest:
            raise UserError(f"pack.shard_tokens = {self.shard_tokens} is less than one row of pack.{name} = {longest}")


def pack(tokens: Path, config: PackConfig, out: Path, executor: Executor, progress: Progress) -> dict[str, Any]:
    """Pack a tokens folder into rows; returns the manifest.

    Args:
        tokens: a finished folder of tokens.
        out: receives part-*.arrow, the tokenizer of the tokens, with buckets schedule.arrow, and manifest.json.
    """
    manifest = open_manifest(tokens, "tokens")
    described = describe_tokenizer(load(tokens / TOKENIZER_FOLDER))
    if described != manifest["tokenizer"]:
        raise UserError(f"{tokens / TOKENIZER_FOLDER} is not the tokenizer that made these tokens; tokenize again")
    prepare_folder(out)
    put_tokenizer(tokens / TOKENIZER_FOLDER, out, described)
    store = {"tokens": str(tokens), "fingerprint": manifest["fingerprint"]}
    state = out / STATE_FOLDER
    planning = [Unit("plan", {**store, "config": asdict(config)})]
    planned = run_units("pack plan", make_plan, planning, state, executor, progress)[0]
    plan_file = file_reference(state, planned.files[0])
    packed = load_plan(state / PLAN)
    units = [
        Unit(
            f"part-{shard:05d}",
            {"part": f"part-{shard:05d}", **store, "plan": plan_file, "first": first, "last": last},
        )
        for shard, (first, last) in enumerate(_shards(packed, config.shard_tokens))
    ]
    records = run_units("pack rows", write_shard, units, out, executor, progress)
    totals = [RowTotals(**record.stats["totals"]) for record in records]
    entries = packed_manifest_entries(packed, totals, TokenStore.open(tokens))
    if config.buckets and packed.buckets:
        entries["schedule"] = _put_schedule(packed.buckets, config.buckets, config.seed, out)
    else:
        (out / SCHEDULE).unlink(missing_ok=True)  # of an earlier run with buckets
    files = [file for record in records for file in record.files]
    return write_manifest(out, "packed", files, stage="pack", tokenizer=described, **entries)


def _shards(packed: PackPlan, shard_tokens: int) -> list[tuple[int, int]]:
    """The first and one past the last row of every file; with buckets, the rows of a file are of one bucket."""
    bounds = packed.buckets.bounds.tolist() if packed.buckets else [0, packed.rows]
    shards: list[tuple[int, int]] = []
    for first, last in pairwise(bounds):
        rows_per_shard = shard_tokens // packed.room(first)
        shards += [(row, min(row + rows_per_shard, last)) for row in range(first, last, rows_per_shard)]
    return shards


def _put_schedule(buckets: Buckets, config: BucketConfig, seed: int, out: Path) -> dict[str, Any]:
    """Write the bucket schedule of a pass; returns its entry in the manifest."""
    schedule = make_schedule(buckets, config.step_tokens, config.curriculum, config.cycles, seed)
    save_schedule(out / SCHEDULE, schedule)
    per_length = np.bincount(schedule.bucket, minlength=config.longest.bit_length())
    return {
        "file": SCHEDULE,
        "xxh3_128": hash_file(out / SCHEDULE),
        "fingerprint": schedule.fingerprint,
        "step_tokens": config.step_tokens,
        "curriculum": config.curriculum,
        "cycles": config.cycles,
        "seed": seed,
        "steps": schedule.steps,
        "steps_per_bucket": per_length[-len(buckets.rows) :].tolist(),
        "short_steps": schedule.short_steps,
    }


def bucket_figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says about buckets, beside the figures of all packed rows; empty for rows of one length."""
    if "buckets" not in manifest["pack"]:
        return {}
    buckets = Buckets.of(manifest["pack"]["buckets"])
    return {
        "target_only_tokens": manifest["drops"]["tokens_target_only"],
        "leftover_rows": buckets.leftover_rows,
        "leftover_tokens": buckets.leftover_tokens,
        "bucket_rows": dict(zip(map(str, buckets.lengths.tolist()), buckets.rows, strict=True)),
        "schedule": manifest["schedule"],
    }


def make_plan(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Assign the fragments of all documents to rows."""
    config = build(PackConfig, payload["config"])
    lengths = TokenStore.open(Path(payload["tokens"])).lengths
    if (cut := config.buckets) is not None:
        packed = decompose(lengths, cut.shortest, cut.longest, cut.overlong, cut.leftovers, config.seed)
    else:
        packed = plan(lengths, config.seq_len, config.overflow, config.seed, config.algorithm, config.window)
    save_plan(out / PLAN, packed)
    return UnitResult({PLAN: packed.rows})


def write_shard(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write rows first to last (exclusive) of the plan as one file."""
    packed = load_plan(Path(payload["plan"]["path"]))
    store = TokenStore.open(Path(payload["tokens"]))
    name = f"{payload['part']}.arrow"
    totals = write_rows(out / name, packed, payload["first"], payload["last"], store, pack_settings(packed, store))
    return UnitResult({name: totals.rows}, {"totals": totals.as_json()})
