"""The pack stage: one plan over the lengths of the whole corpus, then shards of packed rows, each its own unit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, open_manifest, write_manifest
from seqmill.packing import (
    RowTotals,
    TokenStore,
    load_plan,
    pack_settings,
    packed_manifest_entries,
    plan,
    save_plan,
    write_rows,
)
from seqmill.packing.pack_plan import OVERFLOWS
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    file_reference,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, describe_tokenizer, put_tokenizer
from seqmill.tokenizers_ext import load

PLAN = "plan.arrow"


@dataclass(frozen=True)
class PackConfig:
    """`[pack]`: documents into rows of equal room."""

    seq_len: int = 2048  # tokens that a row has room for
    overflow: str = "split"  # longer documents: "split", "truncate", "drop" or "error"
    seed: int = 0  # of the order of rows
    shard_tokens: int = 1 << 26  # room of one output file, in tokens

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise UserError(f"pack.seq_len = {self.seq_len}: a row needs room for at least 1 token")
        if self.overflow not in OVERFLOWS:
            raise UserError(f"pack.overflow = {self.overflow!r}: choose one of {', '.join(OVERFLOWS)}")
        if self.shard_tokens < self.seq_len:
            raise UserError(
                f"pack.shard_tokens = {self.shard_tokens} is less than one row of pack.seq_len = {self.seq_len}"
            )


def pack(tokens: Path, config: PackConfig, out: Path, executor: Executor, progress: Progress) -> dict[str, Any]:
    """Pack a tokens folder into rows; returns the manifest.

    Args:
        tokens: a finished folder of tokens.
        out: receives part-*.arrow, the tokenizer of the tokens, and manifest.json.
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
    rows, rows_per_shard = planned.files[0].rows, config.shard_tokens // config.seq_len
    units = [
        Unit(
            f"part-{shard:05d}",
            {
                "part": f"part-{shard:05d}",
                **store,
                "plan": plan_file,
                "first": first,
                "last": min(first + rows_per_shard, rows),
            },
        )
        for shard, first in enumerate(range(0, rows, rows_per_shard))
    ]
    records = run_units("pack rows", write_shard, units, out, executor, progress)
    totals = [RowTotals(**record.stats["totals"]) for record in records]
    entries = packed_manifest_entries(load_plan(state / PLAN), totals, TokenStore.open(tokens))
    files = [file for record in records for file in record.files]
    return write_manifest(out, "packed", files, stage="pack", tokenizer=described, **entries)


def make_plan(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Assign the fragments of all documents to rows."""
    config = PackConfig(**payload["config"])
    lengths = TokenStore.open(Path(payload["tokens"])).lengths
    packed = plan(lengths, config.seq_len, config.overflow, config.seed)
    save_plan(out / PLAN, packed)
    return UnitResult({PLAN: packed.rows})


def write_shard(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write rows first to last (exclusive) of the plan as one file."""
    packed = load_plan(Path(payload["plan"]["path"]))
    store = TokenStore.open(Path(payload["tokens"]))
    name = f"{payload['part']}.arrow"
    totals = write_rows(out / name, packed, payload["first"], payload["last"], store, pack_settings(packed, store))
    return UnitResult({name: totals.rows}, {"totals": totals.as_json()})
