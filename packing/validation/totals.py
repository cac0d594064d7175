"""The counts of a packed folder's manifest against its rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqmill.manifest import MANIFEST
from seqmill.packing.buckets import Buckets
from seqmill.packing.curriculum import load_schedule, make_schedule
from seqmill.packing.totals import RowTotals
from seqmill.packing.validation.report import Violation
from seqmill.packing.validation.segments import Segments, count_distinct
from seqmill.storage import hash_file


def check_totals(total: RowTotals, segments: Segments, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    """The manifest's totals, and that what went in is what came out and what was dropped."""
    for name, value in total.as_json().items():
        if manifest["totals"].get(name) != value:
            yield Violation(
                "totals", MANIFEST, None, 1, f"{name} is {manifest['totals'].get(name)}, the rows have {value}"
            )
    drops = manifest["drops"]
    target_only = drops.get("tokens_target_only", 0)
    ids, repeated = count_distinct(segments.doc_id), manifest["totals"].get("documents_repeated", 0)
    heads = int(np.count_nonzero(segments.start == 0))
    if repeated and heads - ids != repeated:  # without any, I4 names a second beginning
        detail = f"documents_repeated is {repeated}, the rows have {heads} beginnings of {ids} documents"
        yield Violation("totals", MANIFEST, None, 1, detail)
    documents = ids + repeated
    accounted = {
        "tokens_in": total.tokens + target_only + drops["tokens"],
        "documents_in": documents + drops["documents"] + drops["documents_empty"],
    }
    for name, value in accounted.items():
        if drops[name] != value:
            detail = f"{name} is {drops[name]}, the rows and the drop record have {value}"
            yield Violation("totals", MANIFEST, None, 1, detail)
    if "buckets" in manifest["pack"]:
        yield from _check_buckets(total, documents, manifest)


def _check_buckets(total: RowTotals, documents: int, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    """That buckets hold all rows and tokens, and that each packed document has one token that is a target only."""
    buckets = Buckets.of(manifest["pack"]["buckets"])
    expected = {
        "rows of all buckets": (sum(buckets.rows), total.rows),
        "tokens of all buckets": (buckets.tokens, total.tokens),
        "targets": (total.tokens, total.loss_tokens),
        "tokens_target_only": (manifest["drops"].get("tokens_target_only"), documents),
    }
    for name, (listed, found) in expected.items():
        if listed != found:
            yield Violation("totals", MANIFEST, None, 1, f"{name} are {listed}, the rows have {found}")


def check_schedule(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    """The file that says which bucket a step reads, where the manifest lists one."""
    entry = manifest.get("schedule")
    if entry is None:
        return
    path = folder / entry["file"]
    if not path.is_file() or hash_file(path) != entry["xxh3_128"]:
        yield Violation(
            "I10", entry["file"], None, 1, "the file is missing, or does not match the hash in the manifest"
        )
        return
    stored = load_schedule(path)
    buckets = Buckets.of(manifest["pack"]["buckets"])
    wanted = make_schedule(buckets, *(entry[name] for name in ("step_tokens", "curriculum", "cycles", "seed")))
    same_steps = np.array_equal(stored.bucket, wanted.bucket) and np.array_equal(
        stored.step_of_bucket, wanted.step_of_bucket
    )
    if not same_steps or not stored.fingerprint == wanted.fingerprint == entry["fingerprint"]:
        yield Violation("schedule", entry["file"], None, 1, "it is not the schedule of these buckets and settings")
