"""The index: what earlier batches kept, so that a new batch is compared with all of it and the old corpus is not read.

    INDEX/index.json               settings that every batch must share
    INDEX/0003/generation.json     what the fourth batch added, written last: its parts and what they were made from
    INDEX/0003/part-00000.arrow    its kept documents, zstd: doc_id, id, source, text; candidates are verified by text
    INDEX/0003/part-00000.documents.arrow, .exact.arrow, .bands.arrow     their sketch (see `sketch`)

A batch that is in the index already, by the fingerprint of its documents or by what its output notes, is compared with
the generations before it alone: so the same command run again does nothing, a lost output can be made again, and the
last batch can be made from other documents or by other settings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, OutputFile
from seqmill.pipeline.dedup.sketch import BANDS, DOCUMENT_FIELDS, DOCUMENTS, EXACT
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import Record, UnitResult, file_reference
from seqmill.storage import canonical_json, only_writer, read_arrow, read_json, with_metadata, write_arrow, write_json

SETTINGS = "index.json"
GENERATION = "generation.json"
KINDS = (DOCUMENTS, EXACT, BANDS)
KEPT_COLUMNS = ("doc_id", "id", "source", "text")


@dataclass(frozen=True)
class Part:
    """Documents that take part in a comparison."""

    name: str  # of the units that work on it
    documents: Mapping[str, Any]  # reference to its documents, with "rows"
    first: int  # position of its first document
    kept_from: str  # "input", or "index/0003"

    @property
    def payload(self) -> dict[str, Any]:
        """What its units are told."""
        return {"part": self.name, "documents": self.documents, "first": self.first}


@dataclass(frozen=True)
class Index:
    """The generations that a batch is compared with."""

    root: Path
    generation: str  # of this batch: "0003"
    settings: Mapping[str, Any]  # that all batches share
    made_from: Mapping[str, str]  # fingerprints of this batch's documents and settings
    parts: tuple[Part, ...]
    sketches: Mapping[str, list[dict[str, Any]]]  # kind -> references, one per part

    @property
    def folder(self) -> Path:
        """Where this batch's own generation goes."""
        return self.root / self.generation

    @property
    def documents(self) -> int:
        """How many documents it holds."""
        return sum(part.documents["rows"] for part in self.parts)


@contextmanager
def open_index(folder: Path, settings: Mapping[str, Any], made_from: Mapping[str, str], out: Path) -> Iterator[Index]:
    """Hold the index against other processes and read it; an empty or missing folder is an empty index.

    Args:
        settings: decide which keys documents have; those of the first batch bind the others.
        made_from: fingerprints of the batch's "documents" and of all "settings" that decide what is removed.
        out: folder of the batch's result, where it notes which generation it is.

    Raises:
        UserError: another process holds the index, it is not whole, it was made with other settings, or this batch was
            made from other documents or settings before, and others came after it.
    """
    with _held(folder):
        generations = sorted(path.parent for path in folder.glob(f"[0-9]*/{GENERATION}"))
        _check_whole(folder, generations)
        if generations:
            _check_settings(folder, settings)
        described = [read_json(path / GENERATION) for path in generations]
        before = _place_of_batch(folder, [one["made_from"] for one in described], made_from, out)
        parts: list[Part] = []
        sketches: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for generation, one in zip(generations[:before], described, strict=False):
            for names in one["parts"]:
                _add_part(generation, names, parts, sketches)
        yield Index(folder, f"{before:04d}", settings, made_from, tuple(parts), sketches)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(only_writer(folder))
        except UserError as error:
            raise UserError(
                f"dedup.index = {str(folder)!r}: {error}; or use another index, apart from the output"
            ) from error
        yield


def _check_whole(folder: Path, generations: Sequence[Path]) -> None:
    for number, generation in enumerate(generations):
        if generation.name != f"{number:04d}":
            raise UserError(
                f"the index {folder} has a generation {generation.name} and none {number:04d}: it is not whole; make "
                "it again from its batches"
            )


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    found, wanted = read_json(folder / SETTINGS), json.loads(canonical_json(dict(settings)))
    for name in sorted(set(found) | set(wanted)):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"the index {folder} was made with dedup.{name} = {found.get(name)!r}, not {wanted.get(name)!r}, and "
                "their documents cannot be compared; use the same setting, or another index"
            )


def _place_of_batch(
    folder: Path, described: Sequence[Mapping[str, str]], made_from: Mapping[str, str], out: Path
) -> int:
    """How many generations this batch is compared with: all, or those before its own if it is in the index already."""
    noted = read_json(out / STATE_FOLDER / SETTINGS) if (out / STATE_FOLDER / SETTINGS).is_file() else {}
    known = [made_from["documents"]]
    if noted.get("index") == str(folder):  # the documents may have changed since
        known.append(noted["documents"])
    own = [one["documents"] in known for one in described]
    before = own.index(True) if any(own) else len(own)
    if before < len(own) - 1 and dict(described[before]) != dict(made_from):
        raise UserError(
            f"this batch is generation {before} of the index {folder}, made from other documents or by other settings, "
            f"and the {len(own) - 1 - before} after it rest on that; use what it was made from, a new --out for new "
            "documents, or make the index again"
        )
    return before


def begin_generation(index: Index, out: Path) -> None:
    """Note in `out` which batch of the index it is, and take back the batch's generation if it was made from others."""
    note = {"index": str(index.root), "documents": index.made_from["documents"]}
    generation = index.folder / GENERATION
    if generation.is_file() and read_json(generation)["made_from"] != dict(index.made_from):
        generation.unlink()
    write_json(out / STATE_FOLDER / SETTINGS, note)


def _add_part(
    generation: Path,
    names: Mapping[str, Mapping[str, Any]],
    parts: list[Part],
    sketches: Mapping[str, list[dict[str, Any]]],
) -> None:
    files = {kind: OutputFile(**file) for kind, file in names.items()}
    for file in files.values():
        found = generation / file.name
        if not found.is_file() or found.stat().st_size != file.bytes:
            raise UserError(f"{found} is missing or damaged: the index is not whole; make it again from its batches")
    first = parts[-1].first + parts[-1].documents["rows"] if parts else 0
    text = {**file_reference(generation, files["text"]), "rows": files["text"].rows}
    label = f"index/{generation.name}"
    parts.append(Part(f"{generation.name}-{Path(files['text'].name).stem}", text, first, label))
    for kind in KINDS:
        sketches[kind].append({**file_reference(generation, files[kind]), "rows": files[kind].rows, "first": first})


def remember(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """One part of a generation: the documents of a part that were kept, and their sketch."""
    part = payload["part"]
    files = {f"{part}.arrow": _kept_text(payload["kept"]["path"], out / f"{part}.arrow")}
    sketches = {kind: read_arrow(Path(payload["sketches"][kind]["path"])) for kind in KINDS}
    low, high = payload["first"], payload["first"] + len(sketches[DOCUMENTS])
    removed = read_arrow(Path(payload["removals"]["path"]))["removed"].to_numpy()
    is_kept = np.ones(high - low, bool)
    is_kept[removed[slice(*np.searchsorted(removed, [low, high]))] - low] = False
    new_row = np.cumsum(is_kept).astype(np.uint32) - np.uint32(1)
    for kind, table in sketches.items():
        in_order = kind == DOCUMENTS  # no key to keep sorted, and no row to renumber
        batches = table.filter(pa.array(is_kept)).to_batches() if in_order else _renumbered(table, is_kept, new_row)
        name = f"{part}.{kind}.arrow"
        files[name] = write_arrow(out / name, table.schema, batches)
    return UnitResult(files)


def _renumbered(table: pa.Table, is_kept: np.ndarray, new_row: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows of kept documents with their new rows; each batch stays sorted as it was."""
    for batch in table.to_batches():
        row = batch["row"].to_numpy()
        batch = batch.set_column(batch.schema.get_field_index("row"), "row", pa.array(new_row[row]))
        yield batch.filter(pa.array(is_kept[row]))


def _kept_text(kept: str, out: Path) -> int:
    types = {**DOCUMENT_FIELDS, "text": pa.large_string()}
    schema = with_metadata(pa.schema({name: types[name] for name in KEPT_COLUMNS}), "documents")
    batches = (
        pa.record_batch([batch.column(name).cast(schema.field(name).type) for name in KEPT_COLUMNS], schema=schema)
        for batch in document_batches(Path(kept))
    )
    return write_arrow(out, schema, batches, compression="zstd")


def write_generation(index: Index, records: Sequence[Record]) -> None:
    """Make the parts of `remember` a generation of the index, and delete what a killed batch left beside them."""
    parts = []
    for record in records:
        by_kind = {"text" if file.name.count(".") == 1 else file.name.split(".")[-2]: file for file in record.files}
        parts.append({kind: asdict(file) for kind, file in by_kind.items()})
    named = {file["name"] for part in parts for file in part.values()}
    for path in index.folder.glob("part-*"):
        if path.name not in named:
            path.unlink()
    write_json(index.root / SETTINGS, dict(index.settings))
    write_json(index.folder / GENERATION, {"made_from": dict(index.made_from), "parts": parts})
