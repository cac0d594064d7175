"""What every driver of a tokenizer does: read documents, encode or decode them, say how long it took and what came out.

    python encode_PEER.py describe OUT                      version, names of its variants
    python encode_PEER.py encode OUT DOCUMENTS TOKENIZER    seconds cold and warm, and a hash of the ids, per variant
    python encode_PEER.py decode OUT DOCUMENTS TOKENIZER    the same of decoding these ids, and a hash of the bytes
    python encode_PEER.py train OUT DOCUMENTS VOCAB_SIZE    seconds; the vocabulary is left in OUT

DOCUMENTS is one file of JSON lines with id and text. Cold is the first call of a codec just made, behind one of another
codec for a single short text, which loads code; warm is the best of two later ones, or of as many as four seconds have
room for. Drivers run in the peer's own environment, so this file uses the standard library only.
"""

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from protocol import answer, read_documents

WARM_REPEATS, WARM_SECONDS = 2, 4.0
BATCH = 1000  # documents given to a trainer at a time
SHORT = "ACGTACGTACGT"  # text of every tokenizer of the benchmark, k-mers included
THREADS = 1 if os.environ.get("RAYON_NUM_THREADS") == "1" else os.cpu_count() or 1


@dataclass(frozen=True)
class Codec:
    """A tokenizer, and how its own types become and are made of Python's; only encode and decode are timed."""

    encode: Callable[[Any], Any]
    ids: Callable[[Any], Iterable[Sequence[int]]]  # of what `encode` returns, document by document
    given: Callable[[list[str]], Any] = lambda texts: texts  # what `encode` takes
    decode: Callable[[Any], Any] | None = None
    to_decode: Callable[[Any], Any] = lambda encoded: encoded  # what `decode` takes, of what `encode` returns
    texts: Callable[[Any], Iterable[bytes]] = lambda decoded: (text.encode() for text in decoded)


def main(
    package: str,
    variants: dict[str, Callable[[Path], Codec]],
    train: Callable[[Iterator[list[str]], int, Path], None] | None = None,
) -> None:
    """Do the task that the command line names."""

    def training(out: Path, documents: str, vocab_size: str) -> dict[str, object]:
        assert train
        began = time.perf_counter()
        train(batches(Path(documents)), int(vocab_size), out)
        return {"seconds": time.perf_counter() - began}

    def measured(
        measure: Callable[[Codec, list[str]], dict[str, object]], _out: Path, documents: str, tokenizer: str
    ) -> dict[str, object]:
        texts = [text for _, text in read_documents(Path(documents))]
        able = {name: make for name, make in variants.items() if measure is encoding or make(Path(tokenizer)).decode}
        for make in able.values():
            load_code(make(Path(tokenizer)))
        return {"variants": {name: measure(make(Path(tokenizer)), texts) for name, make in able.items()}}

    tasks = {"encode": partial(measured, encoding), "decode": partial(measured, decoding), "train": training}
    answer(package, tasks, variants=list(variants))


def load_code(codec: Codec) -> None:
    """Encode and decode a short text."""
    encoded = codec.encode(codec.given([SHORT]))
    if codec.decode:
        codec.decode(codec.to_decode(encoded))


def batches(path: Path) -> Iterator[list[str]]:
    """The texts of a file, a thousand at a time."""
    texts = (text for _, text in read_documents(path))
    while batch := list(islice(texts, BATCH)):
        yield batch


def encoding(codec: Codec, texts: list[str]) -> dict[str, object]:
    """Seconds, tokens and a hash of the ids."""
    seconds, encoded = timed(codec.encode, codec.given(texts))
    digest, tokens = hashlib.sha256(), 0
    for ids in codec.ids(encoded):
        tokens += len(ids)
        flat = ids.astype("<u4") if hasattr(ids, "astype") else array("I", ids)
        digest.update(len(ids).to_bytes(8, "little") + flat.tobytes())
    return {**seconds, "tokens": tokens, "hash": digest.hexdigest()}


def decoding(codec: Codec, texts: list[str]) -> dict[str, object]:
    """Seconds, and whether the documents come back."""
    assert codec.decode
    seconds, decoded = timed(codec.decode, codec.to_decode(codec.encode(codec.given(texts))))
    return {**seconds, "exact": all(a == b.encode() for a, b in zip(codec.texts(decoded), texts, strict=True))}


def timed(work: Callable[[Any], Any], given: Any) -> tuple[dict[str, float], Any]:
    """Seconds of the first call and of the best later one, and the result."""
    times: list[float] = []
    while len(times) < 1 + WARM_REPEATS or sum(times[1:]) < WARM_SECONDS:
        result = None  # let go of the former one outside of the clock
        began = time.perf_counter()
        result = work(given)
        times.append(time.perf_counter() - began)
    return {"cold": times[0], "warm": min(times[1:])}, result
