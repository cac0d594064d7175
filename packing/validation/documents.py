"""I4 and I5: the segments of each document tile it, and each next token is the one that follows."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from seqmill.packing.schema import NO_NEXT
from seqmill.packing.validation.reference import Reference, compare_lengths, compare_shared, compare_targets
from seqmill.packing.validation.report import Violation
from seqmill.packing.validation.segments import Segments, count_distinct, number_keys, per_file, ranks


def check_documents(
    segments: Segments, manifest: Mapping[str, Any], reference: Reference | None
) -> Iterator[Violation]:
    """I4 and I5, over all shards, and against the documents where they are given."""
    if not len(segments.row):
        return
    has_buckets = "buckets" in manifest["pack"]
    pieces, is_whole = segments, _are_whole(segments, has_buckets)
    if has_buckets and not (is_whole and reference is None):
        segments = _with_last_tokens(segments)
    if not is_whole:
        yield from _join_up(segments, manifest)
    if reference is not None:
        yield from compare_lengths(segments, manifest, reference)
        yield from compare_shared(pieces, manifest, reference)
        if pieces is not segments:
            yield from compare_targets(pieces, manifest, reference)


def check_targets(segments: Segments, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    """I11, for segments of which I4 and I5 hold.

    The documents of an id have as many targets as its segments. Each of its segments tells no more and no less than
    those that begin documents do, for nothing tells which of the documents it belongs to.
    """
    targets = segments.stop - segments.start - (segments.next_token == NO_NEXT)
    is_head = segments.start == 0
    right = is_head & (segments.next_token == NO_NEXT) & (segments.doc_targets == targets)  # most: a whole document
    left = np.flatnonzero(~right)
    if not len(left):
        return
    group = number_keys(segments.doc_id[left])
    groups = int(group.max()) + 1
    told, heads = segments.doc_targets[left], is_head[left]
    counted, claimed = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    np.add.at(counted, group, targets[left])
    np.add.at(claimed, group[heads], told[heads])
    least, most = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1, np.int64)
    np.minimum.at(least, group[heads], told[heads])
    np.maximum.at(most, group[heads], told[heads])
    wrong = (counted != claimed)[group] | (told < least[group]) | (told > most[group])
    yield from per_file(manifest, segments, left, wrong, "I11", "doc_targets is not the number of its targets")


def _are_whole(segments: Segments, has_buckets: bool) -> bool:
    """Whether the ids are all different and the segments of each follow each other: the usual case, quickly seen.

    Most documents are one segment that begins at 0 and has no next token; only the others are sorted.
    """
    is_head = segments.start == 0
    if count_distinct(segments.doc_id[is_head]) != np.count_nonzero(is_head):
        return False
    cut = np.flatnonzero(~is_head | (segments.next_token != NO_NEXT))
    if has_buckets and len(cut) < len(is_head):
        return False  # a segment without a target behind it
    order = cut[np.lexsort((segments.start[cut], segments.doc_id[cut]))]
    before, after = order[:-1], order[1:]
    same = segments.doc_id[before] == segments.doc_id[after]
    follows = (segments.stop[before] == segments.start[after]) & (
        segments.next_token[before] == segments.first_token[after]
    )
    begins = np.concatenate([[True], ~same])[: len(order)]
    ends = np.concatenate([~same, [True]])[-len(order) :] if len(order) else begins
    is_end = segments.next_token[order] == NO_NEXT
    return bool(follows[same].all() and is_head[order][begins].all() and (has_buckets or np.array_equal(is_end, ends)))


def _join_up(segments: Segments, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    """Meet the ends of an id's segments with the beginnings at the same position, and name those without a partner.

    A document of 40 tokens in rows of 16, twice: two segments begin at 0; at 16 and at 32 two end and two begin; two
    end at 40, where none begins. The next tokens at 16 are the two that begin there, those at 40 are both -1.
    """
    count = len(segments.row)
    doc_id = np.concatenate([segments.doc_id, segments.doc_id])
    place = number_keys(doc_id, np.concatenate([segments.stop, segments.start]))
    ends_at, begins_at = place[:count], place[count:]
    places = int(place.max()) + 1
    ends, begins = np.bincount(ends_at, minlength=places), np.bincount(begins_at, minlength=places)
    is_head = segments.start == 0
    begins[begins_at[is_head]] = 0  # a document's beginning continues nothing
    # the order of tokens matches equal ones; it falls, so that the -1 of those that end here come last
    _, end_rank = ranks(ends_at, -segments.next_token)
    begin_order, begin_rank = ranks(begins_at, -segments.first_token)
    allowed = np.where(is_head, count if manifest["totals"].get("documents_repeated") else 1, ends[begins_at])
    everything = np.arange(count)
    detail = "a segment does not begin where its document's last one ended"
    yield from per_file(manifest, segments, everything, begin_rank >= allowed, "I4", detail)
    continues = begin_order[~is_head[begin_order]]  # by position, and there by falling token
    first = np.concatenate([[0], np.cumsum(begins)])[ends_at]
    expected = np.full(count, NO_NEXT, np.int64)
    goes_on = end_rank < begins[ends_at]
    expected[goes_on] = segments.first_token[continues[(first + end_rank)[goes_on]]]
    wrong = segments.next_token != expected
    yield from per_file(manifest, segments, everything, wrong, "I5", "next_token is not the document's next token")


def _with_last_tokens(segments: Segments) -> Segments:
    """`segments`, and one of length 1 for each next token that begins none of them: the last of its document.

    At one position of one id, the next tokens 5, 5, 7 and a beginning with 5 leave the last tokens 5 and 7.
    """
    key = number_keys(
        np.concatenate([segments.doc_id, segments.doc_id]),
        np.concatenate([segments.stop, segments.start]),
        np.concatenate([segments.next_token, segments.first_token]),
    )
    ends_at, begins_at = key[: len(segments.row)], key[len(segments.row) :]
    begins = np.bincount(begins_at, minlength=int(key.max()) + 1)
    _, rank = ranks(ends_at, np.arange(len(ends_at)))
    last = np.flatnonzero((rank >= begins[ends_at]) & (segments.next_token != NO_NEXT))
    added = Segments(
        file=segments.file[last],
        row=segments.row[last],
        doc_id=segments.doc_id[last],
        start=segments.stop[last],
        stop=segments.stop[last] + 1,
        first_token=segments.next_token[last],
        next_token=np.full(len(last), NO_NEXT, np.int64),
        doc_targets=segments.doc_targets[last],
        digest=np.zeros(len(last), np.uint64),
    )
    return Segments.join([segments, added])
