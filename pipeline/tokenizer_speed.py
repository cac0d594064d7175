"""How fast tokenizers encode and decode, in memory: cold (a fresh encoder, empty caches) and warm (the same again).

Loading is timed apart. Before the first clock starts, another encoder has encoded a sentence, so that a cold rate is no
rate of loading code. MB are 10^6 bytes of text; encoders use as many cores as they do by themselves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seqmill.pipeline.bench import describe_machine
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.sampling import drawn
from seqmill.tokenizers_ext import Encoder, load

SAMPLE_BYTES = 16_000_000  # text to time, about: it is held in memory
SMALLEST_GROUP = 100_000  # bytes in the sample: below, a clock tells little
REPEATS = 2  # warm: the better of these


def measure_speed(
    tokenizers: Mapping[str, str], parts: Sequence[Path], num_bytes: int, group_by: str
) -> dict[str, Any]:
    """Speeds of every tokenizer on a sample of the documents, and on its larger groups.

    Args:
        tokenizers: name -> path.
        parts: files of documents.
        num_bytes: of text in all parts.
        group_by: a column of the documents.

    Returns:
        unit, machine, sample_bytes, and tokenizers: name -> {load_seconds, all, groups}, where all and each group are
        {bytes, encode_cold, encode_warm, decode_cold, decode_warm}; rates are None when there is no text.
    """
    share = min(1.0, SAMPLE_BYTES / max(1, num_bytes))
    batches = [
        batch.filter(pa.array(drawn(batch.column("doc_id").to_numpy(), share, 0)))
        for part in parts
        for batch in document_batches(part)
    ]
    columns = {"text": pa.large_string(), group_by: pa.string()}
    texts, groups = (
        pa.concat_arrays([pa.array([], kind), *(batch.column(name).cast(kind) for batch in batches)])
        for name, kind in columns.items()
    )
    by_group = {
        name.as_py(): chosen
        for name in groups.unique().drop_null()
        if _bytes(chosen := texts.filter(pc.equal(groups, name))) >= SMALLEST_GROUP
    }
    return {
        "unit": "MB/s",
        "machine": describe_machine(),
        "sample_bytes": _bytes(texts),
        "tokenizers": {name: _speeds(path, texts, by_group) for name, path in tokenizers.items()},
    }


def _speeds(path: str, texts: pa.Array, by_group: Mapping[str, pa.Array]) -> dict[str, Any]:
    first = load(path)
    first.decode(first.encode(pa.array(["The first call loads code."])))
    began = time.perf_counter()
    load(path)
    return {
        "load_seconds": round(time.perf_counter() - began, 3),
        "all": _rates(load(path), texts),
        "groups": {name: _rates(load(path), chosen) for name, chosen in by_group.items()},
    }


def _rates(encoder: Encoder, texts: pa.Array) -> dict[str, Any]:
    """Rates of a fresh encoder."""
    encode, ids = _timed(lambda: encoder.encode(texts))
    decode, _ = _timed(lambda: encoder.decode(ids))
    num_bytes = _bytes(texts)
    rates = {
        f"{name}_{state}": float(f"{num_bytes / 1e6 / seconds[state]:.4g}") if num_bytes else None
        for name, seconds in (("encode", encode), ("decode", decode))
        for state in ("cold", "warm")
    }
    return {"bytes": num_bytes, **rates}


def _timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of the first call, and of the best of `REPEATS` later ones; and what they return."""
    seconds = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return {"cold": seconds[0], "warm": min(seconds[1:])}, result


def _bytes(texts: pa.Array) -> int:
    return int(pc.sum(pc.binary_length(texts), min_count=0).as_py())
