import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.dedup.characters import character_tables
from seqmill.pipeline.dedup.containment import EMPTY, best_contained, run_sets, slot_table
from seqmill.pipeline.documents import utf8_buffers

from . import oracle

TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "é", "語", ".", "12"]), max_size=12).map(" ".join), max_size=5
)


def best(texts: list[str], held: list[str], ngram: int) -> list[tuple[int, float]]:
    tables = character_tables()
    offsets, data = utf8_buffers(pa.array(held, pa.large_string()))
    ends, hashes = run_sets(data, offsets, *tables, ngram)
    order = np.argsort(hashes, kind="stable")
    runs, first = np.unique(hashes[order], return_index=True)
    holders = np.append(first, len(hashes)).astype(np.int64)
    document = np.repeat(np.arange(len(held), dtype=np.int32), np.diff(ends))[order]
    contents = (runs, slot_table(runs), holders, document, np.diff(ends))
    for array in (runs, holders, document, contents[-1]):
        array.flags.writeable = False  # as it comes from a file
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    found, share = best_contained(data, offsets, *tables, ngram, *contents)
    return list(zip(found.tolist(), share.tolist(), strict=True))


@given(TEXTS, TEXTS, st.integers(1, 4))
def test_the_best_contained_document_equals_the_oracle(texts: list[str], held: list[str], ngram: int) -> None:
    assert best(texts, held, ngram) == [oracle.contained(text, held, ngram) for text in texts]


def test_a_question_is_found_in_a_page_whatever_stands_around_it() -> None:
    held = ["What is the capital of France?", "Who wrote the play Faust?"]
    page = "Quiz of the day. WHAT is the capital: of France... and " + "more words " * 5000
    assert best([page, "unrelated words all the way down"], held, 3) == [(0, 1.0), (-1, 0.0)]
    assert best(["Do you know what is the capital of Peru?"], held, 3) == [(0, 0.75)]


def test_texts_shorter_than_a_run_have_none() -> None:
    assert best(["one two three"], ["one two three"], 4) == [(-1, 0.0)]


@given(st.sets(st.integers(0, 2**64 - 1), max_size=50))
def test_every_run_has_a_slot_on_its_way(values: set[int]) -> None:
    runs = np.array(sorted(values), np.uint64)
    slots = slot_table(runs)
    assert sorted(slots[slots != EMPTY].tolist()) == list(range(len(runs)))
    for k, run in enumerate(runs):
        slot = int(run) % len(slots)
        while slots[slot] != k:
            assert slots[slot] != EMPTY
            slot = (slot + 1) % len(slots)
