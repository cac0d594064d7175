"""What merging adds to encoding one batch of 32 rows of 512 tokens, in this process."""

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from seqmill.tokenizers_ext import load
from seqmill.tokenizers_ext.merging import MergeConfig, apply_table, learn_table, merge_batch

from .rows import Row, row
from .timing import best_seconds

ROWS, TOKENS, MERGES, TABLE = 32, 512, 50, 1000
REPEATS = 20


def merging_rows(texts: list[str], tokenizer: Path) -> Iterator[Row]:
    """Milliseconds of one batch: to encode it, to merge it, and to merge it by counting anew in Python.

    Raises:
        AssertionError: counting anew gives other rows than the kernel.
    """
    encoder = load(tokenizer)
    reference = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    long = [ids[:TOKENS] for ids in encoder.encode(pa.array(texts)).to_pylist() if len(ids) >= TOKENS][:ROWS]
    ids = pa.array(long, pa.list_(pa.uint16()))
    batch = [text.decode(errors="ignore") for text in encoder.decode(ids).to_pylist()]
    column = pa.array(batch, pa.large_string())
    case = f"a batch of {len(long)} x {TOKENS} tokens"
    encoding = {
        "seqmill": lambda: encoder.encode(column),
        f"tokenizers {version('tokenizers')}": lambda: reference.encode_batch_fast(batch, add_special_tokens=False),
    }
    for system, work in encoding.items():
        yield _milliseconds(f"{case}: encode", system, work, REPEATS)
    table = learn_table(encoder, ids, MergeConfig(TABLE))
    config = MergeConfig(MERGES, rule="none")
    yield _milliseconds(f"{case}: apply {TABLE} merges", "seqmill", lambda: apply_table(encoder, ids, table), REPEATS)
    for rule in ("gpt2", "word"):
        within = MergeConfig(MERGES, rule=rule)
        name = f"{case}: learn and make {MERGES} merges within {rule}"
        yield _milliseconds(name, "seqmill", lambda within=within: merge_batch(encoder, ids, within), REPEATS)
    name = f"{case}: learn and make {MERGES} merges within rows"
    assert merge_batch(encoder, ids, config).ids.to_pylist() == counting_anew(long, encoder.vocab_size)
    yield _milliseconds(name, "seqmill", lambda: merge_batch(encoder, ids, config), REPEATS)
    yield _milliseconds(name, "counting anew, Python", lambda: counting_anew(long, encoder.vocab_size), 1)


def counting_anew(rows: list[list[int]], first_new: int) -> list[list[int]]:
    """The rows after the merges of the most frequent pairs, all pairs counted before each: the published way."""
    for new in range(first_new, first_new + MERGES):
        counts = Counter(pair for ids in rows for pair in pairwise(ids))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        rows = [_joined(ids, best, new) for ids in rows]
    return rows


def _joined(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    out: list[int] = []
    at = 0
    while at < len(ids):
        found = tuple(ids[at : at + 2]) == pair
        out.append(new if found else ids[at])
        at += 2 if found else 1
    return out


def _milliseconds(case: str, system: str, work: Callable[[], object], repeats: int) -> Row:
    return row(case, system, best_seconds(work, repeats) * 1e3, "ms", False)
