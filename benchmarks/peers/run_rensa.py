"""rensa: sketches and index in Rust, from shingles made in Python. Its deduplicator checks candidates by their
estimated similarity."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from protocol import (
    BANDS,
    PERMUTATIONS,
    SAME_BANDS,
    SEED,
    THRESHOLD,
    USUAL,
    Clusters,
    main,
    read_documents,
    shingles,
)
from rensa import CMinHash, RMinHash, RMinHashDeduplicator

BATCH = 1000  # documents given to Rust at a time


def batches(texts: list[str]) -> Iterator[list[list[str]]]:
    for first in range(0, len(texts), BATCH):
        yield [shingles(text) for text in texts[first : first + BATCH]]


def r_signatures(texts: list[str]) -> None:
    for batch in batches(texts):
        RMinHash.digest_matrix_from_token_sets(batch, PERMUTATIONS, SEED)


def rho_signatures(texts: list[str]) -> None:
    for batch in batches(texts):
        RMinHash.digest_matrix_from_token_sets_rho(batch, PERMUTATIONS, SEED)


def c_signatures(texts: list[str]) -> None:
    for batch in batches(texts):
        CMinHash.digests64_from_token_sets(batch, PERMUTATIONS, SEED)


def dedup(documents: Path, permutations: int, bands: int | None) -> Callable[[], Clusters]:
    index = RMinHashDeduplicator(THRESHOLD, permutations, True, bands, SEED)
    order: dict[str, int] = {}
    kept_for: list[tuple[str, str]] = []
    lines = read_documents(documents)
    while batch := list(islice(lines, BATCH)):
        sketches = RMinHash.from_token_sets([shingles(text) for _, text in batch], permutations, SEED)
        pairs = [(id_, sketch) for (id_, _), sketch in zip(batch, sketches, strict=True)]
        for (id_, sketch), kept in zip(pairs, index.add_pairs(pairs), strict=True):
            if kept:
                order[id_] = len(order)
            else:
                kept_for.append((id_, sketch))
    # which document was kept instead is a question of its own, asked when the clock has stopped
    return lambda: [
        *((id_, min(index.get_duplicates(sketch), key=order.__getitem__)) for id_, sketch in kept_for),
        *((id_, id_) for id_ in order),
    ]


def same_bands(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    return dedup(documents, PERMUTATIONS, BANDS)


def usual(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    return dedup(documents, 128, None)


if __name__ == "__main__":
    variants = {"RMinHash": r_signatures, "RMinHash rho": rho_signatures, "CMinHash": c_signatures}
    main("rensa", variants, {SAME_BANDS: same_bands, USUAL: usual})
