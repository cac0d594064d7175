"""datasketch: MinHash and MinHashLSH. A document is removed when the index of those kept so far answers with one."""

from collections.abc import Callable
from pathlib import Path

from datasketch import MinHash, MinHashLSH
from protocol import (
    BANDS,
    PERMUTATIONS,
    ROWS,
    SAME_BANDS,
    SEED,
    THRESHOLD,
    USUAL,
    Clusters,
    main,
    read_documents,
    shingles,
)


def minhash(text: str, permutations: int = PERMUTATIONS) -> MinHash:
    sketch = MinHash(permutations, seed=SEED)
    sketch.update_batch([shingle.encode() for shingle in shingles(text)])
    return sketch


def signatures(texts: list[str]) -> None:
    for text in texts:
        minhash(text)


def dedup(documents: Path, index: MinHashLSH, permutations: int) -> Callable[[], Clusters]:
    order: dict[str, int] = {}
    kept_for: list[tuple[str, str]] = []
    for id_, text in read_documents(documents):
        sketch = minhash(text, permutations)
        found = index.query(sketch)
        if found:
            kept_for.append((id_, min(found, key=order.__getitem__)))
        else:
            order[id_] = len(order)
            index.insert(id_, sketch)
    return lambda: [*kept_for, *((id_, id_) for id_ in order)]


def same_bands(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    return dedup(documents, MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS)), PERMUTATIONS)


def usual(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    return dedup(documents, MinHashLSH(threshold=THRESHOLD, num_perm=128), 128)  # chooses its own bands


if __name__ == "__main__":
    main("datasketch", {"": signatures}, {SAME_BANDS: same_bands, USUAL: usual})
