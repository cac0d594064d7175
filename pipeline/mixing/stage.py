"""The mix stage: folders of documents or tokens in, one folder out, re-ordered and re-counted.

    survey every part -> one plan -> deal every part into sorted runs -> gather every output part
                                  \\-> pass every part on, once per copy              (shuffle = false)

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
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Record,
    Unit,
    all_done,
    file_reference,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.funnel import add_counts, check_funnel, funnel_entry
from seqmill.pipeline.mixing import plan as plans
from seqmill.pipeline.mixing import shuffle
from seqmill.pipeline.mixing.columns import COPY, check_columns
from seqmill.pipeline.mixing.config import UNITS, MixConfig
from seqmill.pipeline.mixing.damage import damage_report
from seqmill.pipeline.mixing.survey import survey_part
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, describe_tokenizer, put_tokenizer
from seqmill.storage import read_json, read_metadata
from seqmill.tokenizers_ext import load

NOT_SAMPLED = "not sampled: "  # in front of a source in the funnel
_CARRIED = ("tokenizer", "vocab_size", "append_eos")  # schema metadata of tokens that must agree, and is passed on


def mix(
    folders: Sequence[Path], config: MixConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Mix finished folders of documents, or of tokens, into one of the same kind and columns; returns the manifest.

    A uint32 column `copy` is added where a document is repeated: 0 for its first copy. Ids stay as they are, unless two
    folders share some: then the file numbers of later folders move up (manifest "inputs": "id_shift").

    The manifest holds, besides the files:
        funnel: one entry; what is left out counts as "not sampled: SOURCE". Copies are no part of it:
        repeated: documents, bytes and tokens that were added as copies.
        by_source: per source what entered, what left, how many distinct documents, epochs (documents left / entered),
            and in the mix's unit: size, share, wanted size and share, and their deviation.
        damage_band: where `parameters` is set, see `damage.damage_report`.
        totals: documents, bytes (and tokens) written.

    Raises:
        UserError: the folders differ in kind, columns or tokenizer, hold a document twice, or cannot be mixed as
            `config` says within its memory.
    """
    manifests = [open_manifest(folder) for folder in folders]
    kind = _common_kind(folders, manifests)
    parts = _Parts(folders, manifests)
    described = _common_tokenizer(folders, manifests) if kind == "tokens" else None
    metadata = _common_columns(parts, kind)
    prepare_folder(out)
    if described:
        put_tokenizer(Path(folders[0]) / TOKENIZER_FOLDER, out, described)
    state = out / STATE_FOLDER
    settings = {**asdict(config), "parameters": None}  # a warning changes no byte
    surveys = run_units("mix survey", survey_part, parts.units(), state / "survey", executor, progress)
    planning = {
        "surveys": [
            {**file_reference(state / "survey", record.files[0]), "folder": folder, "sources": record.stats["sources"]}
            for record, folder in zip(surveys, parts.folder_of, strict=True)
        ],
        "folders": len(folders),
        "inputs": [manifest["fingerprint"] for manifest in manifests],
        "kind": kind,
        "config": settings,
    }
    planned = run_units("mix plan", plans.make_plan, [Unit("plan", planning)], state, executor, progress)[0]
    plan = read_json(state / plans.PLAN)
    shared = {
        "plan": file_reference(state, planned.files[0]),
        "seed": config.seed,
        "memory_mb": config.memory_mb,
        "kind": kind,
        "metadata": {**metadata, "mix": {**settings, "inputs": plan["inputs"]}},
    }
    write = _shuffled if config.shuffle else _in_order
    records = write(parts, plan, shared, out, executor, progress)
    manifest = _publish(out, kind, config, plan, [file for record in records for file in record.files], described)
    shutil.rmtree(state / "runs", ignore_errors=True)
    return manifest


class _Parts:
    """All parts of all folders in order, with a name each: "in000-part-00003"."""

    def __init__(self, folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> None:
        self.names: list[str] = []
        self.references: list[dict[str, Any]] = []
        self.folder_of: list[int] = []
        for folder, (path, manifest) in enumerate(zip(folders, manifests, strict=True)):
            for part, reference in part_references(Path(path), manifest).items():
                self.names.append(f"in{folder:03d}-{part}")
                self.references.append(reference)
                self.folder_of.append(folder)

    def units(self, shifts: Sequence[int] | None = None, **shared: Any) -> list[Unit]:
        """One unit per part; with `shifts`, what is added to the ids of each folder."""
        payloads = [
            {"name": name, "part": reference, **shared}
            for name, reference in zip(self.names, self.references, strict=True)
        ]
        if shifts is not None:
            first = self.references[0]["path"] if self.references else ""
            for payload, folder in zip(payloads, self.folder_of, strict=True):
                payload.update(shift=shifts[folder], schema_of=first)
        return [Unit(payload["name"], payload) for payload in payloads]


def _common_kind(folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> str:
    if not folders:
        raise UserError("there is nothing to mix; name at least one folder of documents or tokens")
    first: str = manifests[0]["kind"]
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest["kind"] not in ("documents", "tokens"):
            raise UserError(f"{folder} holds {manifest['kind']}; documents or tokens can be mixed")
        if manifest["kind"] != first:
            raise UserError(
                f"{folder} holds {manifest['kind']}, but {folders[0]} holds {first}; mix folders of one kind"
            )
    return first


def _common_columns(parts: _Parts, kind: str) -> dict[str, Any]:
    """The schema metadata to pass on, after checking that all parts have the same columns.

    Raises:
        UserError: columns are missing, differ, or say that the input is a mix with copies already.
    """
    first: pa.Schema | None = None
    carried: dict[str, Any] = {}
    for reference in parts.references:
        path = reference["path"]
        with pa.ipc.open_stream(pa.memory_map(path)) as reader:
            schema = reader.schema
        check_columns(schema, kind, path)
        if COPY in schema.names:
            raise UserError(
                f"{path} has a column {COPY!r}: its documents are repeated already; mix the folders it was made from"
            )
        metadata = {name: value for name, value in read_metadata(schema).items() if name in _CARRIED}
        if first is None:
            first, carried = schema, metadata
        if [(field.name, field.type) for field in schema] != [(field.name, field.type) for field in first]:
            raise UserError(
                f"{path} has the columns {_listed(schema)}, but {parts.references[0]['path']} has {_listed(first)}; "
                "bring them to the same columns (run the same stages on both) and mix again"
            )
        if kind == "tokens" and metadata != carried:
            raise UserError(
                f"{path} was tokenized with other settings ({metadata}) than {parts.references[0]['path']} "
                f"({carried}); tokenize both in the same way"
            )
    return carried if kind == "tokens" else {}


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _common_tokenizer(folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What describes the tokenizer of all folders."""
    for folder, manifest in zip(folders, manifests, strict=True):
        if describe_tokenizer(load(Path(folder) / TOKENIZER_FOLDER)) != manifest["tokenizer"]:
            raise UserError(
                f"{Path(folder) / TOKENIZER_FOLDER} is not the tokenizer that made these tokens; tokenize again"
            )
        if manifest["tokenizer"] != manifests[0]["tokenizer"]:
            raise UserError(
                f"{folder} and {folders[0]} were made with different tokenizers; tokenize both with the same one"
            )
    described: dict[str, Any] = manifests[0]["tokenizer"]
    return described


def _shuffled(
    parts: _Parts, plan: Mapping[str, Any], shared: Mapping[str, Any], out: Path, executor: Executor, progress: Progress
) -> list[Record]:
    """Deal all parts into runs and gather them; the runs are made only while an output part is missing."""
    runs = out / STATE_FOLDER / "runs"
    names = [f"part-{index:05d}" for index in range(len(plan["part_starts"]) if parts.names else 0)]
    units = [
        Unit(name, {"name": name, "index": index, "runs": str(runs), "parts": parts.names, **shared})
        for index, name in enumerate(names)
    ]
    if not all_done("mix gather", units, out):
        run_units("mix deal", shuffle.deal_part, parts.units(plan["shifts"], **shared), runs, executor, progress)
    return run_units("mix gather", shuffle.gather_part, units, out, executor, progress)


def _in_order(
    parts: _Parts, plan: Mapping[str, Any], shared: Mapping[str, Any], out: Path, executor: Executor, progress: Progress
) -> list[Record]:
    """Pass all parts on, as often as the most repeated source is seen."""
    once = parts.units(plan["shifts"], **shared)
    payloads = [{**unit.payload, "copy": copy} for copy in range(plan["most_copies"]) for unit in once]
    units = [
        Unit(f"part-{index:05d}", {**payload, "name": f"part-{index:05d}"}) for index, payload in enumerate(payloads)
    ]
    return run_units("mix", shuffle.pass_on_part, units, out, executor, progress)


def _publish(
    out: Path,
    kind: str,
    config: MixConfig,
    plan: Mapping[str, Any],
    files: Sequence[OutputFile],
    described: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write the manifest, after checking that the rows written are those planned."""
    sources: Mapping[str, Mapping[str, Any]] = plan["sources"]
    sums = {
        what: {unit: sum(source[what][unit] for source in sources.values()) for unit in UNITS}
        for what in ("entered", "left", "distinct")
    }
    assert sum(file.rows for file in files) == sums["left"]["documents"], (files, sums)
    skipped: dict[str, dict[str, int]] = {}
    for name, source in sources.items():
        count = {unit: source["entered"][unit] - source["distinct"][unit] for unit in UNITS}
        if count["documents"]:
            add_counts(skipped.setdefault(NOT_SAMPLED + name, {}), count)
    funnel = [funnel_entry("mix", sums["entered"], skipped)]
    check_funnel(funnel)
    units = UNITS if kind == "tokens" else UNITS[:2]
    by_source = {name: _source_report(name, source, plan, units) for name, source in sources.items()}
    entries: dict[str, Any] = {}
    if config.parameters is not None:
        entries["damage_band"] = damage_report(
            {name: source["epochs"] for name, source in by_source.items()}, config.parameters
        )
    if described:
        entries.update(vocab_size=load(out / TOKENIZER_FOLDER).vocab_size, tokenizer=described, sources=list(sources))
    return write_manifest(
        out,
        kind,
        files,
        stage="mix",
        config=asdict(config),
        inputs=[
            {"fingerprint": fingerprint, "id_shift": shift}
            for fingerprint, shift in zip(plan["inputs"], plan["shifts"], strict=True)
        ],
        unit=plan["unit"],
        funnel=funnel,
        repeated={unit: sums["left"][unit] - sums["distinct"][unit] for unit in units},
        by_source=by_source,
        totals={unit: sums["left"][unit] for unit in units},
        **entries,
    )


def _source_report(
    name: str, source: Mapping[str, Any], plan: Mapping[str, Any], units: Sequence[str]
) -> dict[str, Any]:
    """What was wished for a source and what it got."""
    unit, wanted = plan["unit"], plan["wanted"]
    size = source["left"][unit]
    whole = sum(other["left"][unit] for other in plan["sources"].values())
    report: dict[str, Any] = {
        what: {one: source[what][one] for one in units} for what in ("entered", "left", "distinct")
    }
    report["epochs"] = round(source["left"]["documents"] / source["entered"]["documents"], 6)
    report["size"], report["share"] = size, round(size / max(1, whole), 6)
    if wanted:
        report["wanted_size"], report["deviation"] = wanted[name], size - wanted[name]
        report["wanted_share"] = round(wanted[name] / max(1, sum(wanted.values())), 6)
    return report
