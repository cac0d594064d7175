from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Run = Callable[..., Any]
Write = Callable[[str, bytes | str], Path]

FASTA = ">chr1 the first\nACGTNN\nacgt\n>chr2\n\n>chr3 x\r\nAC\r\nGT\r\n"
RECORDS = st.lists(
    st.tuples(st.text("abc1", min_size=1), st.lists(st.text("ACGTNacgt", max_size=20), max_size=4)), min_size=1
)


@pytest.mark.parametrize("name", ["a.fa", "a.fasta", "a.fna", "a.fa.gz"])
def test_fasta_records_are_documents(run: Run, write: Write, name: str) -> None:
    found = run(write(name, FASTA))
    assert found.table["id"].to_pylist() == ["chr1", "chr3"]
    assert found.texts == ["ACGTNNacgt", "ACGT"]
    assert found.rows == [0, 2]  # chr2 is empty


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RECORDS, st.integers(1, 60))
def test_any_cutting_gives_the_same_records(run: Run, write: Write, records: Any, unit_bytes: int) -> None:
    text = "".join(f">{name} comment\n" + "".join(f"{line}\n" for line in lines) for name, lines in records)
    found = run(write("a.fa", text), unit_bytes=unit_bytes)
    expected = [(name, "".join(lines)) for name, lines in records if "".join(lines)]
    assert list(zip(found.table["id"].to_pylist(), found.texts, strict=True)) == expected


def test_text_before_the_first_header_is_quarantined(run: Run, write: Write) -> None:
    found = run(write("a.fa", "ACGT\n>a\nCC\n"))
    assert found.texts == ["CC"]
    assert found.bad == {"no FASTA header": 1}


def test_fastq_records_are_documents_and_bad_ones_are_quarantined(run: Run, write: Write) -> None:
    good = "@r1 lane\nACGT\n+\n@@II\n@r2\nNN\n+r2\n>I\n"
    assert run(write("a.fq", good)).texts == ["ACGT", "NN"]
    folder = write("b/a.fastq", good + "@r3\nACG\n+\nII\n@r4\nA\n").parent
    found = run(folder)
    assert found.table["id"].to_pylist() == ["r1", "r2"]
    assert found.bad == {"no FASTQ record": 1, "truncated FASTQ record": 1}
