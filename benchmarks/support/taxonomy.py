"""16S genes with their place among the bacteria, from FASTA whose headers carry it.

    >S000000057 Thermocrispum municipale (T); DSM 44069; X79184<TAB>Bacteria; ...; Pseudonocardiaceae; Thermocrispum

as the Ribosomal Database Project writes them: a type strain, and behind a tab its lineage, the genus last.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

DOMAINS = ("Archaea", "Bacteria")


@dataclass(frozen=True)
class Gene:
    """One gene, the bases in capitals."""

    bases: bytes
    species: str  # the first two words of the name: strains and subspecies have the same
    genus: str
    family: str


def read_genes(fasta: Path) -> list[Gene]:
    """All genes with a lineage down to a family and a genus; of equal sequences the first."""
    found: dict[bytes, Gene] = {}
    for header, bases in _records(fasta):
        name, _, lineage = header.partition("\t")
        taxa = lineage.split("; ")
        families = [taxon for taxon in taxa if taxon.endswith("aceae")]
        if taxa[0] in DOMAINS and families and taxa[-1] != families[0]:
            species = " ".join(name.split()[1:3])
            found.setdefault(bases, Gene(bases, species, taxa[-1], families[0]))
    return list(found.values())


def _records(fasta: Path) -> Iterator[tuple[str, bytes]]:
    data = fasta.read_bytes()
    if fasta.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    for record in data.split(b">")[1:]:
        header, _, sequence = record.partition(b"\n")
        yield header.decode(), b"".join(sequence.split()).upper()


@dataclass(frozen=True)
class Task:
    """Genes of some classes; what belongs together must be on one side of a split."""

    bases: list[bytes]
    classes: list[str]
    groups: list[str]


def task(genes: list[Gene], rank: str, group_by: str, length: int | None, classes: int, most: int, seed: int) -> Task:
    """The largest classes of a rank, by seeded choice at most so many genes of each, of as many groups as there are.

    Args:
        rank: "genus" or "family".
        group_by: "species" or "genus".
        length: bases that are kept of a gene, from a random position; default: all.
        classes: with two groups at least; of equally large ones the first by name.
        most: genes of a class.
    """
    members: dict[str, list[Gene]] = {}
    class_of: dict[str, str] = {}
    for gene in genes:
        label, group = getattr(gene, rank), getattr(gene, group_by)
        if class_of.setdefault(group, label) == label:  # a species that is filed twice stays where it was first
            members.setdefault(label, []).append(gene)
    usable = [label for label, own in members.items() if len({getattr(gene, group_by) for gene in own}) > 1]
    chosen = sorted(usable, key=lambda label: (-len(members[label]), label))[:classes]
    rng = np.random.default_rng(seed)
    taken = []
    for label in chosen:
        own = [members[label][index] for index in rng.permutation(len(members[label]))]
        taken += _one_of_each_group_first(own, group_by)[:most]
    return Task(
        [_part(gene.bases, length, rng) for gene in taken],
        [getattr(gene, rank) for gene in taken],
        [getattr(gene, group_by) for gene in taken],
    )


def _one_of_each_group_first(genes: list[Gene], group_by: str) -> list[Gene]:
    """The first gene of every group, then the second of every group that has one, and so on."""
    seen: Counter[str] = Counter()
    rounds = []
    for gene in genes:
        group = getattr(gene, group_by)
        rounds.append(seen[group])
        seen[group] += 1
    return [gene for _, gene in sorted(zip(rounds, genes, strict=True), key=lambda pair: pair[0])]


def _part(bases: bytes, length: int | None, rng: np.random.Generator) -> bytes:
    if length is None or len(bases) <= length:
        return bases
    start = int(rng.integers(len(bases) - length + 1))
    return bases[start : start + length]
