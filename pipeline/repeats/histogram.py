"""How often a corpus repeats itself: documents, bytes and tokens by the number of copies, as dedup found them.

    exact   documents that are equal but for white space: 1 + the removed ones that point to the same kept copy
    near    documents of one cluster, exact copies included: the cluster_size of the dedup stage
    spans   marked spans of the substring stage that stand at the same place of a kept document, and that place itself

A document counts once for itself: three equal documents are 3 documents in the bin "3-4". Bins end at powers of two:
1, 2, 3-4, 5-8, ... A group is cross-source if its members are of more than one source.

Memory: about 150 bytes per removed document (measured with 4 million) and some columns per span, whatever the corpus.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.mixing.columns import num_bytes, num_tokens
from seqmill.pipeline.removed import REMOVED

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

SPANS = "spans.parquet"
BINS = 64  # 1, 2, 3-4, ..., up to 2^63
_NO_SOURCE = -1


def bin_of(copies: Int64s) -> Int64s:
    """The bin of each number of copies >= 1, int64[n]: 0 for 1, 1 for 2, 2 for 3 and 4, 3 for 5 to 8, ..."""
    return np.frexp((copies - 1).astype(np.float64))[1].astype(np.int64)


def bin_name(number: int) -> str:
    """ "1", "2", "3-4", "5-8", ..."""
    return str(number + 1) if number < 2 else f"{(1 << number - 1) + 1}-{1 << number}"


@dataclass(frozen=True, eq=False)
class Groups:
    """Sets of documents that are copies of each other, named by the id of the one that was kept."""

    removed: UInt64s  # ids, sorted
    leader: UInt64s  # of each removed document
    names: UInt64s = field(init=False)  # ids of all leaders, sorted
    sizes: Int64s = field(init=False)  # members of each group, the leader included
    lowest: npt.NDArray[np.int32] = field(init=False)  # smallest and largest number of a member's source
    highest: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        names, followers = np.unique(self.leader, return_counts=True)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "sizes", followers.astype(np.int64) + 1)
        object.__setattr__(self, "lowest", np.full(len(names), np.iinfo(np.int32).max, np.int32))
        object.__setattr__(self, "highest", np.full(len(names), _NO_SOURCE, np.int32))

    def find(self, doc_ids: UInt64s) -> Int64s:
        """The group of each document, int64[documents]; -1 for those that are alone."""
        place, is_removed = _look_up(self.removed, doc_ids)
        leader = doc_ids.copy()
        leader[is_removed] = self.leader[place[is_removed]]
        group, found = _look_up(self.names, leader)
        return np.where(found, group, -1)

    def see(self, doc_ids: UInt64s, source: npt.NDArray[np.int32]) -> None:
        """Note the sources of these documents for their groups."""
        group = self.find(doc_ids)
        grouped = group >= 0
        np.minimum.at(self.lowest, group[grouped], source[grouped])
        np.maximum.at(self.highest, group[grouped], source[grouped])

    def describe(self, doc_ids: UInt64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """(members of each document's group, whether these are of several sources)."""
        group = self.find(doc_ids)
        alone = group < 0
        if not len(self.names):
            return np.ones(len(doc_ids), np.int64), np.zeros(len(doc_ids), np.bool_)
        sizes = np.where(alone, 1, self.sizes[group])
        return sizes, ~alone & (self.lowest[group] != self.highest[group])


class Table:
    """Counts by scope and bin, of several units at once."""

    def __init__(self, units: Sequence[str]) -> None:
        self.units = list(units)
        self._counts: dict[str, Int64s] = {}  # scope -> int64[units, BINS]

    def add(self, scope: str, bins: Int64s, amounts: Sequence[Int64s]) -> None:
        """Add items; `amounts` has an array per unit."""
        counts = self._counts.setdefault(scope, np.zeros((len(self.units), BINS), np.int64))
        for total, amount in zip(counts, amounts, strict=True):
            np.add.at(total, bins, amount)

    def as_json(self, scope: str) -> dict[str, dict[str, int]]:
        """{bin: {unit: count}} of the bins in use."""
        counts = self._counts.get(scope, np.zeros((len(self.units), BINS), np.int64))
        used = np.flatnonzero(counts.any(axis=0))
        return {
            bin_name(int(number)): dict(zip(self.units, counts[:, number].tolist(), strict=True)) for number in used
        }


def histogram(dedup: Path, before: Path | None = None, spans: Path | None = None) -> dict[str, Any]:
    """Count the repetition that a dedup folder tells of.

    Args:
        dedup: what the dedup stage wrote: manifest.json, removed.parquet.
        before: the documents or tokens folder of the same documents before dedup. Without it only documents can be
            counted, and no sources; documents add bytes, tokens add bytes and tokens.
        spans: what the substring stage wrote over the same documents (or fewer): spans.parquet.

    Returns:
        {"documents", "removed", "units", "exact", "near"} and "spans" where they are given; these are
        {"all": {bin: {unit: count}}} and, with `before`, "by_source": {source: {bin: ...}}, "cross_source".

    Raises:
        UserError: a folder is unfinished or lacks its evidence, or `before` has other documents.
    """
    manifest = open_manifest(dedup, "documents")
    groups, removed = _read_groups(dedup / REMOVED)
    documents = sum(file["rows"] for file in manifest["files"]) + removed
    marked = _Spans.read(spans / SPANS) if spans else None
    result: dict[str, Any] = {"documents": documents, "removed": removed}
    if before is None:
        result["units"] = ["documents"]
        for name, group in groups.items():
            table = Table(["documents"])
            table.add("", bin_of(group.sizes), [group.sizes])
            alone = documents - int(group.sizes.sum())
            table.add("", np.zeros(1, np.int64), [np.array([alone])])
            result[name] = {"all": table.as_json("")}
    else:
        result |= _count_documents(before, groups, documents, removed, marked)
    if marked:
        result["spans"] = marked.count(result.get("sources"))
    result.pop("sources", None)
    return result


def _count_documents(
    before: Path, groups: Mapping[str, Groups], documents: int, removed: int, marked: "_Spans | None"
) -> dict[str, Any]:
    """Two passes over the folder before dedup: which sources each group has, then the counts."""
    manifest = open_manifest(before)
    if manifest["kind"] not in ("documents", "tokens"):
        raise UserError(f"{before} holds {manifest['kind']}, but documents or tokens before dedup are needed")
    units = ["documents", "bytes", *(["tokens"] if manifest["kind"] == "tokens" else [])]
    sources: dict[str, int] = {}
    seen = gone = 0
    for batch in _batches(before, manifest):
        doc_ids, source = batch.column("doc_id").to_numpy(), _numbers(batch.column("source"), sources)
        seen += len(doc_ids)
        gone += int(np.count_nonzero(_look_up(groups["near"].removed, doc_ids)[1]))
        for group in groups.values():
            group.see(doc_ids, source)
        if marked:
            marked.see(doc_ids, source)
    if (seen, gone) != (documents, removed):
        raise UserError(
            f"{before} has {seen} documents, {gone} of them removed by dedup; dedup read {documents} and removed "
            f"{removed}: name the folder that dedup read, or the tokens made of that folder"
        )
    names = sorted(sources, key=lambda name: sources[name])
    tables = {name: Table(units) for name in groups}
    for batch in _batches(before, manifest):
        doc_ids, source = batch.column("doc_id").to_numpy(), _numbers(batch.column("source"), sources)
        amounts = [np.ones(len(doc_ids), np.int64), num_bytes(batch), num_tokens(batch)][: len(units)]
        for name, group in groups.items():
            sizes, crosses = group.describe(doc_ids)
            _add_scopes(tables[name], bin_of(sizes), amounts, source, crosses, names)
    return {"units": units, "sources": names, **{name: _scopes(table, names) for name, table in tables.items()}}


def _add_scopes(
    table: Table,
    bins: Int64s,
    amounts: Sequence[Int64s],
    source: npt.NDArray[np.int32],
    crosses: npt.NDArray[np.bool_],
    names: Sequence[str],
) -> None:
    """Add items to the scopes "" (all), "source NAME" and "cross"."""
    table.add("", bins, amounts)
    for number in np.unique(source).tolist():
        own = source == number
        table.add(f"source {names[number]}", bins[own], [amount[own] for amount in amounts])
    table.add("cross", bins[crosses], [amount[crosses] for amount in amounts])


def _scopes(table: Table, names: Sequence[str]) -> dict[str, Any]:
    return {
        "all": table.as_json(""),
        "by_source": {name: table.as_json(f"source {name}") for name in sorted(names)},
        "cross_source": table.as_json("cross"),
    }


def _read_groups(path: Path) -> tuple[dict[str, Groups], int]:
    """The exact and the near groups, and the number of removed documents."""
    columns = _read_columns(path, ["doc_id", "kept_doc_id", "cluster_id"], "reason")
    order = np.argsort(columns["doc_id"])
    doc_id, kept, cluster = (columns[name][order] for name in ("doc_id", "kept_doc_id", "cluster_id"))
    is_exact = columns["reason"][order] == 1
    return {"exact": Groups(doc_id[is_exact], kept[is_exact]), "near": Groups(doc_id, cluster)}, len(doc_id)


def _read_columns(path: Path, names: Sequence[str], reason: str | None = None) -> dict[str, np.ndarray]:
    """Unsigned columns of a parquet file, a batch of rows at a time; of `reason` whether it is "exact", as 0 or 1."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: it is not what its stage wrote; run that stage again")
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in [*names, *([reason] if reason else [])] if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}, only {', '.join(file.schema_arrow.names)}")
        rows, done = file.metadata.num_rows, 0
        found: dict[str, np.ndarray] = {name: np.empty(rows, np.uint64) for name in names}
        if reason:
            found[reason] = np.empty(rows, np.uint8)
        for batch in file.iter_batches(columns=[*names, *([reason] if reason else [])]):
            here = slice(done, done + len(batch))
            for name in names:
                if batch.column(name).null_count:
                    raise UserError(
                        f"{path}: documents were removed for others outside of the input (an index or a holdout), so "
                        "groups of copies are not known; count a dedup without them"
                    )
                found[name][here] = batch.column(name).to_numpy(zero_copy_only=False)
            if reason:
                found[reason][here] = pc.equal(batch.column(reason), "exact").to_numpy(zero_copy_only=False)
            done += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path} ({error}); run the stage that wrote it again") from error
    return found


class _Spans:
    """Marked spans, each with the place in a kept document whose copy it is."""

    def __init__(self, columns: Mapping[str, UInt64s]) -> None:
        self.doc_id = columns["doc_id"]
        self.bytes = (columns["stop"] - columns["start"]).astype(np.int64)
        self.kept_doc_id = columns["kept_doc_id"]
        order = np.lexsort((columns["kept_start"], self.kept_doc_id))
        kept, start = self.kept_doc_id[order], columns["kept_start"][order]
        first = np.ones(len(order), np.bool_)
        first[1:] = (kept[1:] != kept[:-1]) | (start[1:] != start[:-1])
        self.place = np.empty(len(order), np.int64)  # number of the kept place of each span
        self.place[order] = np.cumsum(first) - 1
        self.involved = np.unique(np.concatenate([self.doc_id, self.kept_doc_id]))
        self.source = np.full(len(self.involved), _NO_SOURCE, np.int32)

    @classmethod
    def read(cls, path: Path) -> "_Spans":
        return cls(_read_columns(path, ["doc_id", "start", "stop", "kept_doc_id", "kept_start"]))

    def see(self, doc_ids: UInt64s, source: npt.NDArray[np.int32]) -> None:
        """Note the sources of these documents."""
        place, found = _look_up(self.involved, doc_ids)
        self.source[place[found]] = source[found]

    def count(self, names: Sequence[str] | None) -> dict[str, Any]:
        """Spans, their documents (each once per bin and scope) and bytes by how often their content occurs."""
        table = Table(["spans", "documents", "bytes"])
        copies = np.bincount(self.place)[self.place] + 1 if len(self.place) else self.place
        bins = bin_of(copies)
        if names is None:
            table.add("", bins, [np.ones(len(bins), np.int64), _firsts(self.doc_id, bins), self.bytes])
            return {"all": table.as_json("")}
        source, kept = (self.source[_look_up(self.involved, ids)[0]] for ids in (self.doc_id, self.kept_doc_id))
        unknown = np.concatenate([self.doc_id[source < 0], self.kept_doc_id[kept < 0]])
        if len(unknown):
            raise UserError(
                f"{SPANS} names document {unknown[0]}, which the folder before dedup does not have; name the folder "
                "from which both were made"
            )
        crossing = np.zeros(int(self.place.max(initial=-1)) + 1, np.bool_)
        crossing[self.place[source != kept]] = True
        crosses = crossing[self.place]
        amounts = [np.ones(len(bins), np.int64), _firsts(self.doc_id, bins), self.bytes]
        _add_scopes(table, bins, amounts, source, np.zeros(len(bins), np.bool_), names)
        table.add(
            "cross",
            bins[crosses],
            [amounts[0][crosses], _firsts(self.doc_id[crosses], bins[crosses]), self.bytes[crosses]],
        )
        return _scopes(table, names)


def _firsts(doc_id: UInt64s, bins: Int64s) -> Int64s:
    """1 for one span of every pair of document and bin, else 0."""
    order = np.lexsort((bins, doc_id))
    ids, numbers = doc_id[order], bins[order]
    first = np.ones(len(order), np.int64)
    first[1:] = (ids[1:] != ids[:-1]) | (numbers[1:] != numbers[:-1])
    out = np.empty(len(order), np.int64)
    out[order] = first
    return out


def _look_up(keys: UInt64s, wanted: UInt64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """The place of each wanted number in sorted `keys`, and whether it is there."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


def _batches(folder: Path, manifest: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    for file in manifest["files"]:
        yield from document_batches(folder / file["name"])


def _numbers(column: pa.Array, known: dict[str, int]) -> npt.NDArray[np.int32]:
    """The number of each row's source, int32[rows]; new names are added to `known`."""
    encoded = column.cast(pa.string()).dictionary_encode()
    numbers = [known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """The histogram for people: one table a kind, a row a bin, and per source what is in groups of two or more."""
    lines = [f"{result['documents']:,} documents, {result['removed']:,} removed by dedup"]
    for kind in ("exact", "near", "spans"):
        if kind not in result:
            continue
        counts = result[kind]
        units = list(next(iter(counts["all"].values()), {"documents": 0}))
        lines += ["", f"{_TITLES[kind]:<26}" + "".join(f"{unit:>16} {'':>6}" for unit in units)]
        lines += _rows(counts["all"], units)
        if "cross_source" in counts:
            lines.append(f"  {'of these cross-source':<24}" + _sums(counts["cross_source"], counts["all"], units))
            for source, own in counts["by_source"].items():
                often = {name: count for name, count in own.items() if name != "1"}
                lines.append(f"  {'repeated in ' + source:<24}" + _sums(often, own, units))
    return lines


_TITLES = {"exact": "exact copies", "near": "near-cluster size", "spans": "copies of a span"}


def _rows(bins: Mapping[str, Mapping[str, int]], units: Sequence[str]) -> list[str]:
    return [f"  {name:<24}" + _sums({name: count}, bins, units) for name, count in bins.items()]


def _sums(some: Mapping[str, Mapping[str, int]], whole: Mapping[str, Mapping[str, int]], units: Sequence[str]) -> str:
    """The sums over some bins, and their percentages of the whole."""
    text = ""
    for unit in units:
        part, total = (sum(count[unit] for count in bins.values()) for bins in (some, whole))
        text += f"{part:>16,} {100 * part / max(1, total):>5.1f}%"
    return text
