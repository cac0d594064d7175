"""Rows against the tokens folder that they were packed from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from seqmill.manifest import MANIFEST
from seqmill.packing.buckets import Buckets
from seqmill.packing.decomposition import decompose, kept_pairs
from seqmill.packing.pack_plan import plan
from seqmill.packing.schema import REPEAT_COLUMN
from seqmill.packing.tokens import TokenStore
from seqmill.packing.validation.report import Violation
from seqmill.packing.validation.segments import (
    Bools,
    Int64s,
    Segments,
    UInt64s,
    any_of,
    number_keys,
    per_file,
    ranks,
)


@dataclass(frozen=True, eq=False)
class Reference:
    """The documents that were packed, to be found by id."""

    store: TokenStore
    ids: UInt64s  # all document ids, sorted
    item: Int64s  # the documents in the order of `ids`
    shared: UInt64s  # the ids of more than one document, sorted

    @classmethod
    def of(cls, store: TokenStore) -> "Reference":
        order = np.argsort(store.doc_ids, kind="stable")
        ids = store.doc_ids[order]
        return cls(store, ids, order, np.unique(ids[1:][ids[1:] == ids[:-1]]))

    def is_shared(self, doc_id: UInt64s) -> Bools:
        """Whether several documents have this id."""
        return np.isin(doc_id, self.shared)

    def find(self, doc_id: UInt64s) -> tuple[Int64s, Bools]:
        """The document of every id, and whether there is one."""
        if not len(self.ids):
            return np.zeros(len(doc_id), np.int64), np.zeros(len(doc_id), np.bool_)
        place = np.minimum(np.searchsorted(self.ids, doc_id), len(self.ids) - 1)
        return self.item[place], self.ids[place] == doc_id

    def differs(self, doc_id: UInt64s, start: Int64s, stop: Int64s, tokens: np.ndarray, is_repeat: Bools) -> Bools:
        """Whether each of these segments of unshared ids has other tokens, or another is_repeat, than its document.

        Segments that are not inside a known document are left to the checks of I4 that compare bounds.
        """
        item, known = self.find(doc_id)
        comparable = known & (start >= 0) & (stop <= self.store.lengths[item])
        lengths = stop - start
        expected = self.store.gather(item[comparable], start[comparable], stop[comparable])
        unequal = expected != tokens[np.repeat(comparable, lengths)]
        wrong = np.zeros(len(doc_id), np.bool_)
        ends = np.concatenate([[0], np.cumsum(lengths[comparable])])
        wrong[comparable] = any_of(unequal, ends) | (self.store.is_repeat_of(item[comparable]) != is_repeat[comparable])
        return wrong


def _kept(store: TokenStore, manifest: Mapping[str, Any]) -> Int64s:
    """The tokens of every document that the policies leave, int64[documents]; with buckets a last target included."""
    lengths, capacity = store.lengths, manifest["pack"]["capacity"]
    if "buckets" in manifest["pack"]:
        kept = kept_pairs(lengths, Buckets.of(manifest["pack"]["buckets"]))
        return kept + (kept > 0)
    if manifest["drops"]["policy"] == "truncate":
        return np.minimum(lengths, capacity)
    if manifest["drops"]["policy"] == "drop":
        return np.where(lengths > capacity, 0, lengths)
    return lengths


def compare_lengths(segments: Segments, manifest: Mapping[str, Any], reference: Reference) -> Iterator[Violation]:
    """I4 against the documents themselves: each is packed to the end that the overflow policy leaves it."""
    store = reference.store
    item, known = reference.find(segments.doc_id)
    everything = np.arange(len(known))
    yield from per_file(manifest, segments, everything, ~known, "I4", "a document is not in the tokens folder")
    if not known.all():
        return
    kept = _kept(store, manifest)
    order = np.lexsort((segments.start, segments.doc_id))
    doc_id = segments.doc_id[order]
    is_last = np.concatenate([doc_id[1:] != doc_id[:-1], [True]])
    wrong = is_last & (segments.stop[order] != kept[item[order]]) & ~reference.is_shared(doc_id)
    detail = "a document does not end where the tokens folder and the overflow policy say"
    yield from per_file(manifest, segments, order, wrong, "I4", detail)
    packed = np.zeros(store.documents, np.bool_)
    packed[item] = True
    lost = np.flatnonzero(~packed & (kept > 0) & ~reference.is_shared(store.doc_ids))
    if len(lost):
        detail = f"document {store.doc_ids[lost[0]]} is in no row and not in the drop record"
        yield Violation("I4", MANIFEST, None, len(lost), detail)


def compare_shared(segments: Segments, manifest: Mapping[str, Any], reference: Reference) -> Iterator[Violation]:
    """I4 for ids of several documents: the segments are, as a bag, the pieces into which the policy cuts these."""
    store = reference.store
    item, start, stop = _pieces_of(np.flatnonzero(reference.is_shared(store.doc_ids)), manifest, store)
    has_flags = manifest["pack"].get(REPEAT_COLUMN, False) and store.has_repeats
    flags = store.is_repeat_of(item) if has_flags else np.zeros(len(item), np.bool_)
    expected = digests(store.gather(item, start, stop), stop - start, flags)
    found = np.flatnonzero(reference.is_shared(segments.doc_id))
    key = number_keys(
        np.concatenate([store.doc_ids[item], segments.doc_id[found]]),
        np.concatenate([start, segments.start[found]]),
        np.concatenate([expected, segments.digest[found]]),
    )
    wanted, got = (np.bincount(part, minlength=len(key)) for part in (key[: len(item)], key[len(item) :]))
    _, rank = ranks(key[len(item) :], found)
    wrong = rank >= wanted[key[len(item) :]]
    detail = "a segment is not one of its repeated document's pieces, or one too many"
    yield from per_file(manifest, segments, found, wrong, "I4", detail)
    missing = np.maximum(wanted - got, 0)
    if missing.any():
        document = store.doc_ids[item[np.argmax(missing[key[: len(item)]] > 0)]]
        detail = f"a piece of the repeated document {document} is in no row and not in the drop record"
        yield Violation("I4", MANIFEST, None, int(missing.sum()), detail)


def _pieces_of(documents: Int64s, manifest: Mapping[str, Any], store: TokenStore) -> tuple[Int64s, Int64s, Int64s]:
    """The item, start and stop of all pieces into which the policies cut these documents."""
    pack = manifest["pack"]
    if ("buckets" in pack or pack["algorithm"] == "concat") and len(documents):  # cut where it depends on others
        if "buckets" in pack:
            cut = Buckets.of(pack["buckets"])
            planned = decompose(
                store.lengths, cut.shortest, pack["capacity"], cut.overlong, cut.leftovers, pack["seed"]
            )
        else:
            planned = plan(store.lengths, pack["capacity"], algorithm="concat")
        chosen = np.isin(planned.item, documents)
        return planned.item[chosen], planned.start[chosen], planned.stop[chosen]
    kept, capacity = _kept(store, manifest)[documents], pack["capacity"]
    pieces = -(-kept // capacity)
    item, kept = np.repeat(documents, pieces), np.repeat(kept, pieces)
    start = (np.arange(len(item)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * capacity
    return item, start, np.minimum(start + capacity, kept)


def compare_targets(segments: Segments, manifest: Mapping[str, Any], reference: Reference) -> Iterator[Violation]:
    """I5 against the documents: with buckets every segment has a next token, also where no other tells it."""
    item, known = reference.find(segments.doc_id)
    alone = known & ~reference.is_shared(segments.doc_id) & (segments.stop <= reference.store.lengths[item])
    wrong = np.zeros(len(item), np.bool_)
    wrong[alone] = reference.store.next_token(item[alone], segments.stop[alone]) != segments.next_token[alone]
    detail = "next_token is not that of the tokens folder"
    yield from per_file(manifest, segments, np.arange(len(item)), wrong, "I5", detail)


@njit(cache=True, nogil=True)
def digests(tokens: np.ndarray, lengths: Int64s, is_repeat: Bools) -> UInt64s:
    """A 64-bit digest of each segment's tokens and flag; the segments lie one after the other in `tokens`."""
    digests = np.empty(lengths.size, np.uint64)
    place = 0
    for segment in range(lengths.size):
        digest = np.uint64(2 * lengths[segment] + is_repeat[segment])
        for index in range(place, place + lengths[segment]):
            digest = (digest ^ np.uint64(tokens[index])) * np.uint64(0x9E3779B97F4A7C15)
            digest ^= digest >> np.uint64(29)
        digests[segment] = digest
        place += lengths[segment]
    return digests
