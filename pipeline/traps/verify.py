"""Is every injected copy still there? In the tokens, by decoding documents to bytes; in the packed rows, by tokens."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing import TokenStore
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER
from seqmill.pipeline.traps.inject import INJECTIONS
from seqmill.pipeline.traps.spans import bytes_per_id, decode_ids, encode_behind_space, encode_texts
from seqmill.pipeline.traps.table import TRAPS, read_traps
from seqmill.storage import hash_file, read_arrow
from seqmill.tokenizers_ext import Encoder, load

INTACT, CHANGED, SPLIT, MISSING = "intact", "changed", "split", "missing"
SHOWN = 10  # missing copies that a report names


@dataclass(slots=True)
class Copy:
    """An injected copy and what became of it."""

    trap_id: int
    doc_id: int
    number: int
    start: int  # bytes in the document's text
    stop: int
    text: str
    first: int = 0  # tokens of the document that cover it: first ..
    last: int = 0  # .. last, exclusive
    in_tokens: str = MISSING
    pieces: np.ndarray | None = None  # bool[last - first]: tokens found in packed rows, where no row had all of them
    whole: bool = False  # all of them in one row

    @property
    def in_packed(self) -> str:
        """Whole in one row, cut by a border of rows, or not all there."""
        if self.whole:
            return INTACT
        return SPLIT if self.pieces is not None and self.pieces.all() else MISSING

    def find(self, low: int, high: int) -> None:
        """Tokens low .. high of the document, some of this copy's, stand together in a row."""
        if (low, high) == (self.first, self.last):
            self.whole = True
            return
        if self.pieces is None:
            self.pieces = np.zeros(self.last - self.first, bool)
        self.pieces[low - self.first : high - self.first] = True


@dataclass
class Host:
    """A document with a trap."""

    copies: list[Copy] = field(default_factory=list)
    item: int = -1  # its number among the tokens; -1: not there


def verify_traps(traps: Path, tokens: Path, packed: Path | None = None) -> dict[str, Any]:
    """Look for every copy that `inject` placed.

    Args:
        traps: the folder that `inject` wrote.
        tokens: a tokens folder made of it.
        packed: a folder of rows packed from these tokens.

    Returns:
        copies: how many were injected.
        tokens: how many are intact (the ids of the trap behind a space, neither more nor fewer), changed (the bytes
            are there, in other tokens or with a neighbour in the first or last), or missing (the bytes are not there).
        packed: how many are intact (all covering tokens in one segment of a row), split by a border of rows, or
            missing.
        missing: the first `SHOWN` of the missing, as {"trap_id", "doc_id", "copy", "from"}.

    Raises:
        UserError: a folder is unfinished or was changed, or decoding is no concatenation of tokens.
    """
    hosts = _read_hosts(traps)
    store = TokenStore.open(tokens)
    encoder = load(tokens / TOKENIZER_FOLDER)
    wanted = np.array(list(hosts), np.uint64)
    for item in np.flatnonzero(np.isin(store.doc_ids, wanted)).tolist():
        hosts[int(store.doc_ids[item])].item = item
    _check_tokens(hosts, store, encoder)
    copies = [copy for host in hosts.values() for copy in host.copies]
    report = {"copies": len(copies), "tokens": _counted((INTACT, CHANGED, MISSING), [c.in_tokens for c in copies])}
    lost = [_named(copy, "tokens") for copy in copies if copy.in_tokens == MISSING]
    if packed is not None:
        _require_origin(packed, store)
        _check_rows(hosts, store, packed)
        report["packed"] = _counted((INTACT, SPLIT, MISSING), [copy.in_packed for copy in copies])
        lost += [_named(c, "packed") for c in copies if c.in_packed == MISSING and c.in_tokens != MISSING]
    return {**report, "missing": lost[:SHOWN]}


def _read_hosts(folder: Path) -> dict[int, Host]:
    """Documents with traps by their id, as `inject` left them."""
    manifest = open_manifest(folder, "documents")
    if "injections" not in manifest:
        raise UserError(f"{folder} holds documents without traps; give the folder that `seqmill traps inject` wrote")
    for name, expected in ((INJECTIONS, manifest["injections"][INJECTIONS]), (TRAPS, manifest["traps"][TRAPS])):
        if not (folder / name).is_file() or hash_file(folder / name) != expected:
            raise UserError(f"{folder / name} is not the file that the manifest lists; inject again")
    texts = dict(zip(*read_traps(folder / TRAPS).select(["trap_id", "text"]).to_pydict().values(), strict=True))
    hosts: dict[int, Host] = {}
    for row in pq.read_table(folder / INJECTIONS).to_pylist():
        text = texts[row["trap_id"]] if row["text"] is None else row["text"]
        copy = Copy(row["trap_id"], row["doc_id"], row["copy"], row["start"], row["stop"], text)
        hosts.setdefault(row["doc_id"], Host()).copies.append(copy)
    return hosts


def _check_tokens(hosts: Mapping[int, Host], store: TokenStore, encoder: Encoder) -> None:
    """Find the tokens of every copy, document by document."""
    sizes = bytes_per_id(encoder)
    for doc_id, host in hosts.items():
        if host.item < 0:
            continue
        ids = _tokens_of(store, host.item)
        data = decode_ids(encoder, ids)
        ends = np.concatenate([[0], np.cumsum(sizes[ids])])
        if ends[-1] != len(data):
            raise UserError(
                f"document {doc_id}: its tokens decode to {len(data)} bytes together and {ends[-1]} apart, so a byte "
                "cannot be traced to its token; verify with a byte-level tokenizer"
            )
        expected = _expected_ids(encoder, [copy.text for copy in host.copies])
        for copy in host.copies:
            if data[copy.start : copy.stop] != copy.text.encode():
                continue
            copy.first = int(np.searchsorted(ends, copy.start, "right")) - 1
            copy.last = int(np.searchsorted(ends, copy.stop, "left"))
            run = ids[copy.first : copy.last]
            is_own = any(np.array_equal(run, each) for each in expected[copy.text])
            copy.in_tokens = INTACT if is_own else CHANGED


def _expected_ids(encoder: Encoder, texts: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Text -> its ids behind a space: those where the space is part of the first token, and those where it is not (the
    text's own, behind a token for the space alone)."""
    different = sorted(set(texts))
    both = zip(encode_behind_space(encoder, different), encode_texts(encoder, different), strict=True)
    return dict(zip(different, both, strict=True))


def _check_rows(hosts: Mapping[int, Host], store: TokenStore, packed: Path) -> None:
    """Find the tokens of every copy in the segments of packed rows. Every copy's tokens are in any case those of its
    document; a segment counts where it holds the same ones."""
    wanted = np.array(list(hosts), np.uint64)
    for doc_id, offset, segment in _segments_of(packed, wanted):
        host = hosts[doc_id]
        if host.item < 0:
            continue
        ids = _tokens_of(store, host.item)
        end = offset + len(segment)
        for copy in host.copies:
            low, high = max(copy.first, offset), min(copy.last, end)
            if low < high and np.array_equal(segment[low - offset : high - offset], ids[low:high]):
                copy.find(low, high)


def _segments_of(packed: Path, doc_ids: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(doc_id, first token within the document, ids) for every segment of these documents."""
    for file in open_manifest(packed, "packed")["files"]:
        for batch in read_arrow(packed / file["name"]).to_batches():
            lists = {name: batch.column(name) for name in ("input_ids", "doc_id", "doc_offset", "seq_lengths")}
            ids, documents, offsets, lengths = (_flat(each) for each in lists.values())
            ends = np.cumsum(lengths, dtype=np.int64)  # rows lie end to end, without padding
            for segment in np.flatnonzero(np.isin(documents, doc_ids)).tolist():
                tokens = ids[ends[segment] - lengths[segment] : ends[segment]]
                yield int(documents[segment]), int(offsets[segment]), tokens


def _flat(lists: pa.ListArray) -> np.ndarray:
    return lists.flatten().to_numpy()


def _tokens_of(store: TokenStore, item: int) -> np.ndarray:
    return store.gather(np.array([item]), np.array([0]), store.lengths[item : item + 1])


def _require_origin(packed: Path, store: TokenStore) -> None:
    if open_manifest(packed, "packed")["tokenizer"] != store.manifest["tokenizer"]:
        raise UserError(f"{packed} was packed from tokens of another tokenizer; give the rows made of these tokens")


def _counted(names: tuple[str, ...], found: list[str]) -> dict[str, int]:
    counts = Counter(found)
    return {name: counts[name] for name in names}


def _named(copy: Copy, where: str) -> dict[str, Any]:
    return {"trap_id": copy.trap_id, "doc_id": copy.doc_id, "copy": copy.number, "from": where}
