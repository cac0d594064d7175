"""The benchmark that tells 16S genes apart, on made genes whose families are known to differ."""

from pathlib import Path

import numpy as np
import pytest

from seqmill.compress.distance import COMPRESSORS
from seqmill.errors import UserError
from seqmill.pipeline.bench import benchmark_module, benchmark_names, run_benchmark

taxonomy = benchmark_module("support.taxonomy")


def mutated(bases: bytes, share: float, rng: np.random.Generator) -> bytes:
    changed = np.frombuffer(bases, np.uint8).copy()
    hit = rng.random(len(changed)) < share
    changed[hit] = np.frombuffer(b"acgt", np.uint8)[rng.integers(0, 4, hit.sum())]
    return changed.tobytes()


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four families of five genera of three species, each a mutation of what stands above it."""
    rng = np.random.default_rng(7)
    lines = [b">gi|1| Escherichia coli 536, complete genome", b"ACGT" * 50, b">seq1", b"acgt"]
    for family in ("Aaceae", "Baceae", "Caceae", "Daceae"):
        ancestor = bytes(b"acgt"[digit] for digit in rng.integers(0, 4, 600))
        for genus in (f"{family[0]}{k}" for k in range(5)):
            kind = mutated(ancestor, 0.1, rng)
            for species in range(3):
                name = f">S{species} {genus} species{species} (T); strain\tBacteria; Phylum; {family}; {genus}"
                lines += [name.encode(), in_lines(mutated(kind, 0.02, rng))]
    path = tmp_path_factory.mktemp("genes") / "genes.fasta"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def in_lines(bases: bytes) -> bytes:
    return b"\n".join(bases[start : start + 70] for start in range(0, len(bases), 70))


def test_genes_are_those_with_a_lineage_in_capitals_and_once_each(fasta: Path) -> None:
    genes = taxonomy.read_genes(fasta)
    assert len(genes) == len({gene.bases for gene in genes}) == 4 * 5 * 3
    assert {len(gene.bases) for gene in genes} == {600}
    assert set().union(*(gene.bases for gene in genes)) == set(b"ACGT")
    assert (genes[0].species, genes[0].genus, genes[0].family) == ("A0 species0", "A0", "Aaceae")


def test_a_task_takes_the_largest_classes_and_parts_of_genes(fasta: Path) -> None:
    genes = taxonomy.read_genes(fasta)
    task = taxonomy.task(genes[3:], "family", "genus", 50, classes=2, most=10, seed=1)
    assert sorted(set(task.classes)) == ["Baceae", "Caceae"]  # as large as Daceae, and first by name
    assert [task.classes.count(label) for label in ("Baceae", "Caceae")] == [10, 10]
    assert len(set(task.groups)) == 10  # all five genera of either
    assert all(group[0] == label[0] for group, label in zip(task.groups, task.classes, strict=True))
    whole = b" ".join(gene.bases for gene in genes)
    assert all(len(bases) == 50 and bases in whole for bases in task.bases)


def test_every_system_has_its_rows_and_compressors_tell_families(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {name: COMPRESSORS[name] for name in ("gzip:6", "zstd:3")}
    monkeypatch.setattr(benchmark_module("dna_distance"), "COMPRESSORS", quick)
    assert "dna-distance" in benchmark_names()
    result = run_benchmark("dna-distance", data=fasta, cases=["family"], documents=20 * 15)
    values = {(row["case"], row["system"]): row["value"] for row in result["rows"]}
    systems = {system for _, system in values if "largest" not in system}
    assert len(systems) == 11
    assert len(values) == 1 + 5 * len(systems)
    for system in ("NCD gzip:6", "NCD zstd:3", "seqmill NCD entropy of 6-mers", "cosine of 6-mer counts"):
        assert values["family, 1 nearest, accuracy", system] == 100, system
    assert values["family, 1 nearest, accuracy", "seqmill NCD number of 6-mers"] < 60
    assert result["notes"] == [
        "family: 4 classes, 48 genes to compare with, 12 to tell, median 600 bases; no genus on both sides"
    ]
    assert values["family, accuracy", "largest class"] == 25


def test_without_genes_it_says_what_to_give(tmp_path: Path) -> None:
    assert "--data FASTA" in run_benchmark("dna-distance")["notes"][0]
    plain = tmp_path / "plain.fasta"
    plain.write_bytes(b">seq1\nACGT\n")
    with pytest.raises(UserError, match="lineages stand behind a tab"):
        run_benchmark("dna-distance", data=plain)
    with pytest.raises(UserError, match="there is no case 'order'"):
        run_benchmark("dna-distance", cases=["order"])
