"""The inject stage: every member trap goes into one document, `copies` times, at word gaps.

    OUT/part-*.arrow          the documents, all columns and rows as they were but the text of those that hold a trap
    OUT/traps.parquet         the traps with their copies
    OUT/injections.parquet    where every copy stands

Taking bytes [start - 1, stop) of all injections out of a document gives the document as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, open_manifest, write_manifest
from seqmill.packing.permutation import permutation, round_keys
from seqmill.packing.schema import REPEAT_COLUMN
from seqmill.pipeline.documents import document_batches, utf8_buffers
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Record,
    Unit,
    UnitResult,
    file_reference,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.funnel import funnel_entry
from seqmill.pipeline.traps.config import InjectConfig
from seqmill.pipeline.traps.fuzzy import vary
from seqmill.pipeline.traps.gaps import count_gaps, find_gaps
from seqmill.pipeline.traps.table import TRAPS, read_traps, write_traps
from seqmill.storage import atomic_path, hash_file, read_arrow, write_arrow
from seqmill.tokenizers_ext import Encoder, load

INJECTIONS = "injections.parquet"
PLAN = "traps-plan.arrow"
CANDIDATE_SCHEMA = pa.schema({"rank": pa.uint64(), "doc_id": pa.uint64()})
PLAN_SCHEMA = pa.schema({"doc_id": pa.uint64(), "trap_id": pa.int32(), "copies": pa.int32(), "text": pa.string()})
INJECTION_SCHEMA = pa.schema(
    {
        "trap_id": pa.int32(),
        "doc_id": pa.uint64(),
        "id": pa.string(),  # of the document, as the user named it
        "copy": pa.int32(),  # 0, 1, ... in the order of the text
        "start": pa.int64(),  # first byte of the trap in the new text; the byte before it is the added space
        "stop": pa.int64(),  # behind its last byte, where the document's own space stands
        "character": pa.int64(),  # first character of the trap in the new text
        "text": pa.string(),  # of a fuzzy copy; null: the trap's own
    }
)


def inject(
    documents: Path,
    traps: Path,
    config: InjectConfig,
    out: Path,
    executor: Executor,
    progress: Progress,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Hide the member traps of the file `traps` in a documents folder; do this behind dedup and filters.

    Args:
        tokenizer: whose tokens fuzzy copies have replaced; needed for them alone.

    Returns:
        The manifest: totals, and what was added: {"documents": 0, "bytes", "copies"}; bytes in + added = bytes out.
        Its funnel counts what was added as a negative loss, "inserted".

    Raises:
        UserError: there are fewer suitable documents than members, or what fuzzy copies need is missing.
    """
    manifest = open_manifest(documents, "documents")
    _require_single(documents, manifest)
    members = pc.sum(read_traps(traps)["member"]).as_py() or 0
    if config.fuzzy and tokenizer is None:
        raise UserError(f"--fuzzy {config.fuzzy} replaces tokens: give the --tokenizer that they are counted with")
    prepare_folder(out)
    state = out / STATE_FOLDER
    settings = {"config": asdict(config), "members": members}
    parts = part_references(documents, manifest)

    units = [Unit(part, {"part": part, "documents": file, **settings}) for part, file in parts.items()]
    found = run_units("traps candidates", find_candidates, units, state / "candidates", executor, progress)
    _require_enough(members, config, found)
    planning = {
        "traps": {"path": str(traps), "xxh3_128": hash_file(traps)},
        "candidates": [file_reference(state / "candidates", file) for record in found for file in record.files],
        **settings,
    }
    planned = run_units("traps plan", plan, [Unit("traps-plan", planning)], out, executor, progress)[0]
    by_name = {file.name: file for file in planned.files}
    shared = {"plan": file_reference(out, by_name[f"{STATE_FOLDER}/{PLAN}"]), **settings}
    if config.fuzzy and tokenizer:
        shared["tokenizer"] = {"path": str(tokenizer), "fingerprint": load(tokenizer).fingerprint}
    units = [Unit(part, {"part": part, "documents": file, **shared}) for part, file in parts.items()]
    records = run_units("traps inject", inject_part, units, out, executor, progress)
    places = [
        file_reference(out, file) for record in records for file in record.files if not file.name.startswith("part-")
    ]
    gathered = run_units("traps gather", gather, [Unit("injections", {"places": places})], out, executor, progress)[0]
    totals = {key: sum(record.stats[key] for record in records) for key in ("documents", "bytes", "added")}
    copies = gathered.files[0].rows
    entered = {"documents": totals["documents"], "bytes": totals["bytes"] - totals["added"]}
    return write_manifest(
        out,
        "documents",
        [file for record in records for file in record.files if file.name.startswith("part-")],
        stage="traps inject",
        config={**asdict(config), "repetitions": list(config.repetitions)},
        traps={"members": members, "copies": copies, TRAPS: by_name[TRAPS].xxh3_128},
        injections={INJECTIONS: gathered.files[0].xxh3_128},
        entered=entered,
        added={"documents": 0, "bytes": totals["added"], "copies": copies},
        funnel=[funnel_entry("traps", entered, {"inserted": {"documents": 0, "bytes": -totals["added"]}})],
        totals={"documents": totals["documents"], "bytes": totals["bytes"]},
    )


def find_candidates(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The documents of one part that can hold a trap: as many as there are members, those of lowest rank."""
    config, wanted = _config_of(payload), payload["members"]
    best = pa.table({"rank": [], "doc_id": []}, CANDIDATE_SCHEMA)
    stats = {"documents": 0, "long": 0, "suitable": 0}
    for batch in document_batches(Path(payload["documents"]["path"])):
        offsets, data = utf8_buffers(batch.column("text"))
        suitable = count_gaps(data, offsets, config.min_document_bytes) > 0
        stats["documents"] += len(batch)
        stats["long"] += int((np.diff(offsets) >= config.min_document_bytes).sum())
        stats["suitable"] += int(suitable.sum())
        doc_ids = batch.column("doc_id").to_numpy()[suitable]
        here = pa.table({"rank": rank_of(doc_ids, config.seed), "doc_id": doc_ids}, CANDIDATE_SCHEMA)
        best = _lowest(pa.concat_tables([best, here]), wanted)
    name = f"{payload['part']}.arrow"
    return UnitResult({name: write_arrow(out / name, CANDIDATE_SCHEMA, best.to_batches())}, stats)


def plan(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Give every member its copies and its document; writes the traps table and the plan, ordered by document."""
    config = _config_of(payload)
    traps = read_traps(Path(payload["traps"]["path"]))
    copies = share_copies(traps, config)
    place = traps.schema.get_field_index("copies")
    traps = traps.set_column(place, "copies", pa.array(copies, pa.int32()))
    write_traps(out / TRAPS, traps, config=payload["config"], made_by=payload["traps"]["xxh3_128"])
    members = traps.filter(traps["member"])
    candidates = pa.concat_tables([read_arrow(Path(file["path"])) for file in payload["candidates"]])
    chosen = _lowest(candidates, len(members))["doc_id"]
    planned = pa.table([chosen, *members.select(["trap_id", "copies", "text"]).columns], schema=PLAN_SCHEMA)
    name = f"{STATE_FOLDER}/{PLAN}"
    rows = write_arrow(out / name, PLAN_SCHEMA, planned.sort_by("doc_id").combine_chunks().to_batches())
    return UnitResult({TRAPS: len(traps), name: rows})


def inject_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """One documents part with its traps, and the places of their copies."""
    config = _config_of(payload)
    encoder = load(payload["tokenizer"]["path"]) if "tokenizer" in payload else None
    source = Path(payload["documents"]["path"])
    planned = read_arrow(Path(payload["plan"]["path"]))
    hosts = planned["doc_id"].combine_chunks()
    schema = pa.ipc.open_stream(pa.memory_map(str(source))).schema
    column = schema.get_field_index("text")
    totals = {"documents": 0, "bytes": 0, "added": 0}
    places: list[pa.RecordBatch] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in document_batches(source):
            planned_at = pc.index_in(batch.column("doc_id"), hosts)
            is_host = pc.is_valid(planned_at)
            text = batch.column("text")
            before = int(pc.sum(pc.binary_length(text)).as_py() or 0)
            if hosting := planned.take(planned_at.drop_null()).to_pylist():
                hosts_of_batch = batch.filter(is_host).select(["text", "id"]).to_pylist()
                hidden = [
                    _hide(host["text"], host["id"], trap, config, encoder)
                    for host, trap in zip(hosts_of_batch, hosting, strict=True)
                ]
                places.extend(where for _, where in hidden)
                new = [document for document, _ in hidden]
                text = pc.replace_with_mask(text, is_host, pa.array(new, text.type))
                batch = batch.set_column(column, schema.field(column), text)
            after = int(pc.sum(pc.binary_length(text)).as_py() or 0)
            totals["documents"] += len(batch)
            totals["bytes"] += after
            totals["added"] += after - before
            yield batch

    name, places_name = f"{payload['part']}.arrow", f"{STATE_FOLDER}/injections-{payload['part']}.arrow"
    rows = write_arrow(out / name, schema, batches())
    return UnitResult({name: rows, places_name: write_arrow(out / places_name, INJECTION_SCHEMA, places)}, totals)


def gather(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The places of all parts as one table, ordered by trap and copy."""
    tables = [read_arrow(Path(file["path"])) for file in payload["places"]]
    places = pa.concat_tables([INJECTION_SCHEMA.empty_table(), *tables])
    places = places.sort_by([("trap_id", "ascending"), ("copy", "ascending")])
    with atomic_path(out / INJECTIONS) as temporary:
        pq.write_table(places, temporary, compression="zstd")
    return UnitResult({INJECTIONS: len(places)})


def rank_of(doc_ids: np.ndarray, seed: int) -> np.ndarray:
    """uint64[documents]: a pseudo-random order of documents by their ids and the seed (the finaliser of splitmix64)."""
    x = doc_ids.astype(np.uint64) + round_keys("trap documents", seed)[0]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def share_copies(traps: pa.Table, config: InjectConfig) -> np.ndarray:
    """int32[traps]: how often each trap is injected, 0 for non-members.

    Members of a length, ordered by perplexity, are taken in blocks of as many as there are repetitions; a block's
    repetitions are shuffled. So every number of copies has the same mixture of perplexities.
    """
    trap_id, tokens, perplexity, member = (
        traps[name].to_numpy() for name in ("trap_id", "tokens", "perplexity", "member")
    )
    order = np.lexsort((trap_id, perplexity, tokens))
    members = order[member[order]]
    repetitions = np.array(config.repetitions, np.int32)
    copies = np.zeros(len(traps), np.int32)
    for length in np.unique(tokens[members]).tolist():
        alike = members[tokens[members] == length]
        for first in range(0, len(alike), len(repetitions)):
            block = alike[first : first + len(repetitions)]
            shuffled = permutation(len(repetitions), round_keys("trap copies", config.seed, length, first))
            copies[block] = repetitions[shuffled[: len(block)]]
    return copies


def insert(text: str, added: Sequence[str], keys: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
    """Put a space and a piece of text before the space of a word gap, for every piece of `added`.

    The pieces take different gaps, drawn with `keys`; where there are more pieces than gaps, each gap gets its first
    before any gets its second. ("A B", ["T", "T"]) gives "A T T B".

    Returns:
        The new text, and for each piece "start" and "stop" (bytes) and "character" (of the start) in it, int64.
    """
    data = np.frombuffer(text.encode(), np.uint8)
    gaps = find_gaps(data)
    drawn = permutation(len(gaps), keys)[np.arange(len(added)) % len(gaps)]
    places = np.sort(gaps[drawn])
    sizes = np.array([1 + len(piece.encode()) for piece in added])
    characters = np.array([1 + len(piece) for piece in added])
    before = np.cumsum((data & 0xC0) != 0x80)[places - 1]  # characters of the old text before each place
    old = [data[begin:end].tobytes() for begin, end in pairwise([0, *places.tolist(), len(data)])]
    new = b"".join([old[0], *(f" {piece}".encode() + rest for piece, rest in zip(added, old[1:], strict=True))])
    start = places + np.cumsum(sizes) - sizes + 1
    where = {"start": start, "stop": start + sizes - 1, "character": before + np.cumsum(characters) - characters + 1}
    return new.decode(), where


def _hide(
    text: str, id_: str | None, trap: Mapping[str, Any], config: InjectConfig, encoder: Encoder | None
) -> tuple[str, pa.RecordBatch]:
    """A document's text with all copies of its trap, and their places."""
    count = trap["copies"]
    exact = [trap["text"]] * count
    seed = [config.seed, trap["trap_id"]]
    texts = vary(encoder, trap["text"], config.fuzzy, count, seed) if config.fuzzy and encoder else exact
    new, where = insert(text, texts, round_keys("trap gaps", *seed))
    columns = [
        pa.repeat(pa.scalar(trap["trap_id"], pa.int32()), count),
        pa.repeat(pa.scalar(trap["doc_id"], pa.uint64()), count),
        pa.array([id_] * count, pa.string()),
        pa.array(range(count), pa.int32()),
        *(pa.array(column, pa.int64()) for column in where.values()),
        pa.array(texts if config.fuzzy else [None] * count, pa.string()),
    ]
    return new, pa.record_batch(columns, schema=INJECTION_SCHEMA)


def _lowest(candidates: pa.Table, count: int) -> pa.Table:
    """The `count` candidates of lowest rank, ids deciding between equal ranks."""
    return candidates.sort_by([("rank", "ascending"), ("doc_id", "ascending")])[:count]


def _require_single(documents: Path, manifest: Mapping[str, Any]) -> None:
    """Repeats of a document share its id, so each of them would receive the trap."""
    if any(REPEAT_COLUMN in read_arrow(documents / file["name"]).schema.names for file in manifest["files"][:1]):
        raise UserError(f"{documents} has repeated documents: inject traps first, and repeat documents behind that")


def _require_enough(members: int, config: InjectConfig, records: Sequence[Record]) -> None:
    found = {key: sum(record.stats[key] for record in records) for key in ("documents", "long", "suitable")}
    if found["suitable"] < members:
        raise UserError(
            f"{members} member traps need {members} documents; of {found['documents']} documents {found['long']} have "
            f"{config.min_document_bytes} bytes or more, and {found['suitable']} of these a space between words: lower "
            "traps.min_document_bytes, make fewer traps, or add documents"
        )


def _config_of(payload: Mapping[str, Any]) -> InjectConfig:
    return InjectConfig(**{**payload["config"], "repetitions": tuple(payload["config"]["repetitions"])})
