"""A corpus of any size made from a small real one: passages of 100 words, with seeded edits of words.

Each document is a random passage and one of: `copy`, unchanged; `near`, 2 words replaced (similarity 0.81 or more to
its passage); `far`, six words in ten replaced, which leaves next to no 5-gram (a document like no other). The words
that come in are real words of the corpus, drawn evenly.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

WORDS = 100  # in a document
MOST_PASSAGES = 50_000
KINDS = ("copy", "near", "far")
SHARES = (0.05, 0.15, 0.80)
FAR = 0.6  # share of words replaced
PER_FILE = 100_000  # documents


def write_mutations(texts: Sequence[str], count: int, folder: Path, seed: int = 1) -> dict[str, int]:
    """Write `count` documents as JSON lines into `folder`.

    Returns:
        the documents of each kind, and `passages` that they were made from.
    """
    words, passages = _passages(texts)
    folder.mkdir(parents=True)
    random = np.random.Generator(np.random.Philox(seed))
    kinds = np.zeros(len(KINDS), np.int64)
    for first in range(0, count, PER_FILE):
        number = min(PER_FILE, count - first)
        kind = random.choice(len(KINDS), number, p=SHARES)
        kinds += np.bincount(kind, minlength=len(KINDS))
        documents = passages[random.integers(0, len(passages), number)]
        replaced = (random.random((number, WORDS)) < FAR) & (kind == KINDS.index("far"))[:, None]
        near = np.flatnonzero(kind == KINDS.index("near"))
        replaced[near[:, None], random.integers(0, WORDS, (len(near), 2))] = True
        documents[replaced] = random.integers(0, len(words), int(replaced.sum()))
        with (folder / f"part-{first // PER_FILE:05d}.jsonl").open("w", encoding="utf-8") as file:
            for k, document in enumerate(documents):
                record = {"id": str(first + k), "text": " ".join(words[document])}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return {**dict(zip(KINDS, kinds.tolist(), strict=True)), "passages": len(passages)}


def _passages(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The words, object[vocabulary], and numbers of words, int64[passages, WORDS]."""
    found: list[list[str]] = []
    for text in texts:
        split = text.split()
        found.extend(split[k : k + WORDS] for k in range(0, len(split) - WORDS + 1, WORDS))
        if len(found) >= MOST_PASSAGES:
            break
    flat = [word for passage in found[:MOST_PASSAGES] for word in passage]
    encoded = pa.array(flat, pa.string()).dictionary_encode()
    words = np.array(encoded.dictionary.to_pylist(), object)
    return words, encoded.indices.to_numpy().astype(np.int64).reshape(-1, WORDS)
