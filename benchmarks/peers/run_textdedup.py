"""text-dedup: its MinHash command. It drops documents of fewer than five words, which count as alone here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from protocol import BANDS, NGRAM, PERMUTATIONS, ROWS, SAME_BANDS, USUAL, Clusters, main, read_documents
from text_dedup import minhash
from text_dedup.utils import sha1_hash

LARGEST, PRIME = np.uint32((1 << 32) - 1), np.uint64((1 << 61) - 1)


def signatures(texts: list[str]) -> None:
    permutations = tuple(minhash.RNG.randint(1, PRIME, size=(PERMUTATIONS,), dtype=np.uint64) for _ in range(2))
    for number, text in enumerate(texts):
        minhash.embed_func(
            text,
            number,
            num_perm=PERMUTATIONS,
            ngram_size=NGRAM,
            min_length=NGRAM,
            hashranges=[(first, first + ROWS) for first in range(0, PERMUTATIONS, ROWS)],
            permutations=permutations,
            hash_func=lambda data: sha1_hash(data, d=32),
            dtype=np.uint64,
            max_hash=LARGEST,
            modulo_prime=PRIME,
        )


def command(documents: Path, scratch: Path, *settings: str) -> Callable[[], Clusters]:
    paths = ("--path", "json", "--data_files", str(documents), "--split", "train")
    places = ("--output", str(scratch / "kept"), "--cache_dir", str(scratch / "cache"))
    arguments = [*paths, *places, "--column", "text", "--num_proc", "1", "--ngram", str(NGRAM), *settings]
    minhash.main(arguments, standalone_mode=False)

    def clusters() -> Clusters:
        ids = [id_ for id_, _ in read_documents(documents)]
        return [(ids[k], ids[minhash.uf.find(k)]) for k in list(minhash.uf.parent)]

    return clusters


def same_bands(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    bands = ("--b", str(BANDS), "--r", str(ROWS))
    return command(documents, scratch, "--num_perm", str(PERMUTATIONS), *bands)


def usual(documents: Path, scratch: Path) -> Callable[[], Clusters]:
    return command(documents, scratch, "--threshold", "0.8")


if __name__ == "__main__":
    main("text-dedup", {"": signatures}, {SAME_BANDS: same_bands, USUAL: usual})
