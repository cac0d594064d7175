"""The repeat sampler: T tokens, of which a part f is R copies of a small random subset, after Hernandez et al. 2022,
"Scaling Laws and Interpretability of Learning from Repeated Data" (arXiv 2205.10487), section 2.

    choose from all lengths -> deal every part into sorted runs -> gather every output part

The runs are as large as the output and are deleted once the output is whole.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, OutputFile, open_manifest, write_manifest
from seqmill.packing.schema import REPEAT_COLUMN
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    all_done,
    file_reference,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.mixing import shuffle
from seqmill.pipeline.mixing.columns import COPY
from seqmill.pipeline.mixing.columns import check_columns as check_token_columns
from seqmill.pipeline.mixing.damage import damage_band
from seqmill.pipeline.repeats import choose, windows
from seqmill.pipeline.repeats.config import SampleConfig
from seqmill.pipeline.repeats.deal import deal_part
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, describe_tokenizer, put_tokenizer
from seqmill.storage import read_json, read_metadata
from seqmill.tokenizers_ext import load

_UNITS = ("documents", "bytes", "tokens")


def sample(tokens: Path, config: SampleConfig, out: Path, executor: Executor, progress: Progress) -> dict[str, Any]:
    """Make a tokens folder of which a known part is repeated; returns the manifest.

    The subset has about f * T / R tokens and is disjoint from the unique part, which occurs once. Rows are whole
    documents, or in mode "sequence" whole windows (column `start`: first token within the document). Columns besides
    those of the input: is_repeat, true for every copy of the subset, and `copy`, uint32 from 0. Copies are spread over
    the output in the order of a keyed hash of doc_id and copy.

    The manifest's entry "repeats" holds what was wanted and realised, in tokens, bytes and documents (windows, in mode
    "sequence"), overall and per source, what was left out, and with `parameters` the damage band.

    Raises:
        UserError: the input has too few tokens or holds repeats already, or the settings do not fit the memory budget.
    """
    manifest = open_manifest(tokens, "tokens")
    parts = part_references(tokens, manifest)
    metadata = _check_columns(parts.values(), config) if parts else {}
    described = describe_tokenizer(load(tokens / TOKENIZER_FOLDER))
    if described != manifest["tokenizer"]:
        raise UserError(f"{tokens / TOKENIZER_FOLDER} is not the tokenizer that made these tokens; tokenize again")
    prepare_folder(out)
    put_tokenizer(tokens / TOKENIZER_FOLDER, out, described)
    state, settings = out / STATE_FOLDER, {**asdict(config), "parameters": None}  # a warning changes no byte
    planning = {
        "parts": list(parts.values()),
        "vocab_size": manifest["vocab_size"],
        "sources": manifest["sources"],
        "config": settings,
    }
    planned = run_units("repeats choose", choose.make_plan, [Unit("plan", planning)], state, executor, progress)[0]
    files = {file.name: file_reference(state, file) for file in planned.files}
    plan = read_json(state / choose.PLAN)
    shared = {"plan": files[choose.PLAN], "choice": files[choose.CHOICE], "config": settings}
    described_in = {**metadata, "repeats": {**settings, "input": manifest["fingerprint"]}}
    written = _shuffle(parts, plan, shared, described_in, out, executor, progress)
    result = _publish(out, manifest, config, plan, written)
    shutil.rmtree(state / "runs", ignore_errors=True)
    return result


def _check_columns(parts: Any, config: SampleConfig) -> dict[str, Any]:
    """The schema metadata to pass on, after checking the columns of all parts."""
    carried: dict[str, Any] = {}
    for part in parts:
        with pa.ipc.open_stream(pa.memory_map(part["path"])) as reader:
            schema = reader.schema
        check_token_columns(schema, "tokens", part["path"])
        for name in (REPEAT_COLUMN, COPY):
            if name in schema.names:
                raise UserError(
                    f"{part['path']} has a column {name!r}: it holds repeats already; sample from the tokens that it "
                    "was made of"
                )
        if config.seq_len is not None:
            windows.check_columns(schema)
        found = read_metadata(schema)
        carried = {name: found[name] for name in ("tokenizer", "vocab_size", "append_eos") if name in found}
    return carried


def _shuffle(
    parts: Mapping[str, Mapping[str, Any]],
    plan: Mapping[str, Any],
    shared: Mapping[str, Any],
    metadata: Mapping[str, Any],
    out: Path,
    executor: Executor,
    progress: Progress,
) -> list[OutputFile]:
    """Deal all parts into runs and gather them; the runs are made only while an output part is missing."""
    runs = out / STATE_FOLDER / "runs"
    first = plan["first_item"]
    dealing = [
        Unit(name, {"name": name, "part": part, "first": first[number], "last": first[number + 1], **shared})
        for number, (name, part) in enumerate(parts.items())
    ]
    names = [f"part-{index:05d}" for index in range(len(plan["part_starts"]))]
    gathering = [
        Unit(
            name,
            {
                "name": name,
                "index": index,
                "runs": str(runs),
                "parts": list(parts),
                "inputs": list(parts.values()),
                "plan": shared["plan"],
                "choice": shared["choice"],
                "memory_mb": shared["config"]["memory_mb"],
                "kind": "tokens",
                "metadata": metadata,
            },
        )
        for index, name in enumerate(names)
    ]
    if not all_done("repeats gather", gathering, out):
        run_units("repeats deal", deal_part, dealing, runs, executor, progress)
    records = run_units("repeats gather", shuffle.gather_part, gathering, out, executor, progress)
    return [file for record in records for file in record.files]


def _publish(
    out: Path, manifest: Mapping[str, Any], config: SampleConfig, plan: Mapping[str, Any], files: Sequence[OutputFile]
) -> dict[str, Any]:
    """Write the manifest, after checking that the rows written are those planned."""
    by_source = {source: _realised(counts, config.repeats) for source, counts in plan["by_source"].items()}
    overall = {
        kind: {unit: sum(counts[kind][unit] for counts in plan["by_source"].values()) for unit in _UNITS}
        for kind in ("subset", "unique", "left_out")
    }
    realised = _realised(overall, config.repeats)
    totals = realised["all"]
    assert sum(file.rows for file in files) == totals["documents"], (files, totals)
    repeats: dict[str, Any] = {
        "mode": config.mode,
        "repeats": config.repeats,
        "wanted": {"tokens": config.tokens, "fraction": config.repeat_fraction, **plan["wanted"]},
        "realised": {
            "fraction": round(realised["repeated"]["tokens"] / max(1, totals["tokens"]), 9),
            **realised,
        },
        "by_source": by_source,
    }
    if config.parameters is not None:
        low, high = damage_band(config.parameters)
        repeats["damage_band"] = {
            "parameters": config.parameters,
            "from_repeats": round(low, 1),
            "to_repeats": round(high, 1),
            "inside": low <= config.repeats <= high,
        }
    return write_manifest(
        out,
        "tokens",
        files,
        stage="repeats sample",
        config=asdict(config),
        input=manifest["fingerprint"],
        vocab_size=manifest["vocab_size"],
        tokenizer=manifest["tokenizer"],
        sources=manifest["sources"],
        totals={**totals, "bytes_per_token": round(totals["bytes"] / max(1, totals["tokens"]), 4)},
        repeats=repeats,
    )


def _realised(counts: Mapping[str, Mapping[str, int]], repeats: int) -> dict[str, dict[str, int]]:
    """The subset once and in all its copies, the unique part, both together, and what is in neither."""
    repeated = {unit: repeats * counts["subset"][unit] for unit in _UNITS}
    return {
        "subset": dict(counts["subset"]),
        "repeated": repeated,
        "unique": dict(counts["unique"]),
        "all": {unit: repeated[unit] + counts["unique"][unit] for unit in _UNITS},
        "left_out": dict(counts["left_out"]),
    }
