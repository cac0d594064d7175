"""How well clusters of duplicates agree with what is known of pairs of documents.

A pair counts as found when both documents end in the same cluster. The truth is a folder with

    labelled_pairs.jsonl            {"a", "b", "relation", "label"}; labels near-dup, not-dup, and others apart
    all_pairs_jaccard_ge_050.tsv    id_a, id_b, exact Jaccard similarity: every pair of 0.5 or more, with a header
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NEAR, NOT = "near-dup", "not-dup"

Clusters = Mapping[str, str]  # document id -> cluster; a document that is missing is alone in its own


@dataclass(frozen=True)
class Labelled:
    """A pair of documents that somebody knows about."""

    a: str
    b: str
    relation: str
    label: str


@dataclass(frozen=True)
class Truth:
    """What is known of a corpus."""

    labelled: tuple[Labelled, ...]
    similar: Mapping[tuple[str, str], float]  # every pair of similarity 0.5 or more


@dataclass(frozen=True)
class Scores:
    """Precision, recall and their harmonic mean, from counts of pairs. A share of nothing is 0."""

    right: int  # found, and duplicates
    found: int
    wanted: int  # duplicates

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.found + self.wanted) if self.right else 0.0


def read_truth(folder: Path) -> Truth:
    """The truth in `folder`; see above for its files."""
    with (folder / "labelled_pairs.jsonl").open(encoding="utf-8") as lines:
        records = map(json.loads, lines)
        labelled = tuple(Labelled(r["a"], r["b"], r["relation"], r["label"]) for r in records)
    with (folder / "all_pairs_jaccard_ge_050.tsv").open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        similar = {(a, b): float(value) for a, b, value in rows}
    return Truth(labelled, similar)


def together(clusters: Clusters, a: str, b: str) -> bool:
    """Whether two documents are in one cluster."""
    return a in clusters and clusters[a] == clusters.get(b)


def label_scores(clusters: Clusters, labelled: Sequence[Labelled]) -> Scores:
    """Near duplicates against pairs that are none; pairs of other labels do not count."""
    found = [pair for pair in labelled if pair.label in (NEAR, NOT) and together(clusters, pair.a, pair.b)]
    wanted = sum(pair.label == NEAR for pair in labelled)
    return Scores(sum(pair.label == NEAR for pair in found), len(found), wanted)


def merged(clusters: Clusters, labelled: Sequence[Labelled]) -> dict[tuple[str, str], tuple[int, int]]:
    """(relation, label) -> pairs that are together, all pairs; sorted."""
    all_pairs = Counter((pair.relation, pair.label) for pair in labelled)
    found = Counter((pair.relation, pair.label) for pair in labelled if together(clusters, pair.a, pair.b))
    return {key: (found[key], all_pairs[key]) for key in sorted(all_pairs)}


def similarity_scores(clusters: Clusters, similar: Mapping[tuple[str, str], float], threshold: float) -> Scores:
    """All pairs of a cluster against all pairs of at least this similarity (0.5 or more)."""
    sizes = Counter(clusters.values())
    wanted = [pair for pair, similarity in similar.items() if similarity >= threshold]
    right = sum(together(clusters, a, b) for a, b in wanted)
    return Scores(right, sum(size * (size - 1) // 2 for size in sizes.values()), len(wanted))
