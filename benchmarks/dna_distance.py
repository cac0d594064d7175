"""16S genes told apart by compressors alone: NCD and nearest neighbours, every compressor on the same split.

    genus      which of the 20 largest genera a gene is of; all genes of a species are on one side of the split
    family     which of the 20 largest families; all genes of a genus are on one side, so none has a close relative
    fragments  as family, but of every gene only 250 bases, from anywhere: two of them may have no base in common

The published figures are for gene families of man, chimpanzee and dog (arXiv 2401.14025), where relatives of one gene
lie on both sides; they do not compare with these. Beside NCD stand the largest class, and the cosine of counts of
k-mers with the same neighbours: what no compressor is needed for.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.compress.builders.counts import counts
from seqmill.compress.byte_compressors import zstd_with_dictionary
from seqmill.compress.distance import (
    COMPRESSORS,
    Float64s,
    Lengths,
    distances,
    id_counts,
    id_entropies,
    lengths_of,
    nearest_classes,
    score_classes,
    split_by_group,
)
from seqmill.compress.texts import Texts
from seqmill.errors import UserError
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder
from seqmill.tokenizers_ext.kmer import KmerConfig, KmerEncoder

from .support.arguments import require_known
from .support.rows import Row, row
from .support.taxonomy import Task, read_genes, task

CASES = {  # the rank to tell, what is not divided, and the most bases of a gene
    "genus": ("genus", "species", None),
    "family": ("family", "genus", None),
    "fragments": ("family", "genus", 250),
}
CLASSES = 20
GENES = 200  # of a case; brotli takes ten milliseconds for a pair of them
TEST_SHARE = 0.2
NEIGHBOURS = (1, 3)
KMERS = (4, 6, 8)
DICTIONARY_SIZE = 16_384  # bytes
WINDOW = 12  # bits of an equal-info window
SEED = 1

Measure = Callable[[Sequence[bytes], Sequence[bytes]], Float64s]  # test and training genes to their distances


def run(cases: Sequence[str] = (), data: Path | None = None, documents: int = GENES) -> dict[str, Any]:
    """Rows of the chosen cases.

    Args:
        cases: of `CASES`; default: all.
        data: FASTA, maybe with zstd, whose headers carry lineages.
        documents: genes of a case at most, as many of each class.

    Raises:
        UserError: a case that does not exist, or no genes for it.
    """
    require_known(cases, CASES, "case")
    if data is None:
        return {"rows": [], "notes": ["no genes: give --data FASTA with lineages behind a tab in its headers"]}
    genes = read_genes(data)
    rows, notes = [], []
    for name in cases or CASES:
        chosen = task(genes, *CASES[name], CLASSES, max(2, documents // CLASSES), SEED)
        if not chosen.bases:
            raise UserError(f"--data {data}: no class of two {CASES[name][1]} groups; lineages stand behind a tab")
        rows += list(_rows(name, chosen))
        notes.append(_describe(name, chosen))
    return {"rows": rows, "notes": notes}


def _describe(name: str, chosen: Task) -> str:
    split = split_by_group(chosen.classes, chosen.groups, TEST_SHARE, SEED)
    return (
        f"{name}: {len(set(chosen.classes))} classes, {len(split.train)} genes to compare with, {len(split.test)} to "
        f"tell, median {int(np.median([len(gene) for gene in chosen.bases]))} bases; no {CASES[name][1]} on both sides"
    )


def _rows(name: str, chosen: Task) -> Iterator[Row]:
    split = split_by_group(chosen.classes, chosen.groups, TEST_SHARE, SEED)
    train, test = ([chosen.bases[index] for index in side] for side in (split.train, split.test))
    known, truth = ([chosen.classes[index] for index in side] for side in (split.train, split.test))
    largest = max(sorted(set(known)), key=known.count)
    yield row(f"{name}, accuracy", "largest class", 100 * truth.count(largest) / len(truth), "%", True)
    for system, measure in _measures(train).items():
        began = time.perf_counter()
        distance = measure(test, train)
        seconds = time.perf_counter() - began
        for k in NEIGHBOURS:
            scores = score_classes(truth, nearest_classes(distance, known, k))
            yield row(f"{name}, {k} nearest, accuracy", system, 100 * scores.accuracy, "%", True)
            yield row(f"{name}, {k} nearest, macro F1", system, 100 * scores.macro_f1, "%", True)
        yield row(f"{name}, time of a pair", system, 1000 * seconds / distance.size, "ms", False)


def _measures(train: Sequence[bytes]) -> dict[str, Measure]:
    """Every system by its name; the dictionary of zstd is trained on the genes to compare with."""
    found = {f"NCD {name}": _ncd(make()) for name, make in COMPRESSORS.items()}
    trained = zstd_with_dictionary(train, DICTIONARY_SIZE)
    found[f"NCD {trained.name}"] = _ncd(lengths_of(trained.compress))
    for k in KMERS:
        encoder = KmerEncoder(KmerConfig(k=k, stride=1))
        found[f"seqmill NCD entropy of {k}-mers"] = _ncd(id_entropies(encoder.encode))
        found[f"cosine of {k}-mer counts"] = _cosine(encoder)
    windows = EqualInfoEncoder([counts(Texts.of(train), WINDOW)])
    found[f"seqmill NCD entropy of windows of {WINDOW} bits"] = _ncd(id_entropies(windows.encode))
    tiles = KmerEncoder(KmerConfig(k=KMERS[1]))
    found[f"seqmill NCD number of {KMERS[1]}-mers"] = _ncd(id_counts(tiles.encode))
    return found


def _ncd(lengths: Lengths) -> Measure:
    return lambda test, train: distances(test, train, lengths, b"", threads=os.cpu_count() or 1)


def _cosine(encoder: KmerEncoder) -> Measure:
    def counted_of(genes: Sequence[bytes]) -> Float64s:
        lists = encoder.encode(pa.array(genes, pa.large_binary()))
        counted = np.zeros((len(genes), encoder.vocab_size))
        for index in range(len(genes)):
            counted[index] = np.bincount(lists[index].values.to_numpy(), minlength=encoder.vocab_size)
        return counted / np.linalg.norm(counted, axis=1, keepdims=True)

    return lambda test, train: 1 - counted_of(test) @ counted_of(train).T
