"""Vocabularies of as many strings, each built, and then timed, in a process of its own.

    build   NAME   training texts -> an artifact that `seqmill.tokenizers_ext.load` reads, and its seconds
    rates   NAME   held-out texts -> MB/s of encoding and decoding, and how many ids every document has

A process first builds, or encodes, a little text: compiled kernels are then loaded, as they are from the second use on.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from seqmill.compress.code_range import code_range
from seqmill.compress.ratios import id_stream_size
from seqmill.compress.texts import Texts
from seqmill.pipeline.build_tokenizer import EqualInfoConfig, build_dictionary
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.train_tokenizer import TokenizerConfig, train_tokenizer
from seqmill.storage import read_arrow, write_arrow
from seqmill.tokenizers_ext import Encoder, load, save_byte, save_equal_info, save_merged, save_subword, train_bpe
from seqmill.tokenizers_ext.byte_level import BYTE_VALUES, ByteEncoder
from seqmill.tokenizers_ext.encoder import as_large_binary, offsets_and_bytes
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder
from seqmill.tokenizers_ext.merging import MergeConfig, learn_table
from seqmill.tokenizers_ext.training.bpe import TRAINING_BYTES

from . import corpus
from .processes import Cost, run_on_one_core

ROUNDS = 3  # of re-estimation of the faithful builders; the others' are those of `seqmill tokenizer build`
MOST_PRECISION = 14  # bits of a model's frequencies, as in the paper
SPARE_MB = 1024
LITTLE = 4_000  # bytes of text that load the code
LITTLE_WINDOW = 9  # bits
WARM_REPEATS, WARM_SECONDS = 2, 1.0
SCHEMA = pa.schema([pa.field("text", pa.large_string(), nullable=False)])
START = "from seqmill.pipeline.bench import benchmark_module; benchmark_module('support.vocabularies').main()"

Build = Callable[[pa.LargeStringArray, int, Path], None]  # texts, bits of a window, the artifact's folder


@dataclass(frozen=True)
class Answer:
    """What a process said, and what it cost."""

    result: dict[str, Any]
    cost: Cost


def ask(task: str, name: str, texts: Path, artifact: Path, window: int) -> Answer:
    """Run a task with threads held to one.

    Args:
        task: "build" or "rates".
        name: of `SYSTEMS`, or for "rates" also "zstd:3".
        texts: as `write_texts` wrote them.

    Raises:
        ProcessError: it failed; the message is the last line that it wrote.
    """
    answer = texts.with_name(f"{texts.stem}-{task}.json")
    cost = run_on_one_core([sys.executable, "-c", START, task, name, *map(str, (texts, artifact, window, answer))])
    return Answer(json.loads(answer.read_text()), cost)


def write_texts(path: Path, texts: pa.LargeStringArray) -> Path:
    """Documents as `ask` takes them."""
    write_arrow(path, SCHEMA, [pa.RecordBatch.from_arrays([texts], schema=SCHEMA)])
    return path


def main() -> None:
    """The process that `ask` starts."""
    task, name, texts_file, artifact, window, answer = sys.argv[1:]
    texts = read_arrow(Path(texts_file)).column(0).combine_chunks()
    found = TASKS[task](name, texts, Path(artifact), int(window))
    Path(answer).write_text(json.dumps(found))


def build(name: str, texts: pa.LargeStringArray, artifact: Path, window: int) -> dict[str, Any]:
    """Build one vocabulary."""
    make = system(name)
    make(little_of(texts), LITTLE_WINDOW, artifact.with_name(f"{artifact.name}-little"))
    began, cpu = time.perf_counter(), time.process_time()
    make(texts, window, artifact)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def rates(name: str, texts: pa.LargeStringArray, artifact: Path, window: int) -> dict[str, Any]:
    """MB/s, after it is known that every document comes back; and the ids of each document."""
    if name == "zstd:3":
        return _rates_of_zstd(texts)
    encoder = load(artifact)
    little = encoder.encode(little_of(texts))
    encoder.decode(little)
    encode, ids = timed(lambda: encoder.encode(texts))
    decode, back = timed(lambda: encoder.decode(ids))
    assert back.equals(as_large_binary(texts)), f"{name}: decoded documents are not the encoded ones"
    size = id_stream_size(name, encoder.encode, encoder.vocab_size, [texts])
    return {
        "encode": encode,
        "decode": decode,
        "ids": np.diff(ids.offsets.to_numpy()).tolist(),
        "ids_used": size.ids_used,
        "entropy_bits_per_byte": size.entropy_bits_per_byte,
        "vocabulary_bytes": bytes_of_strings(encoder),
    }


def bytes_of_strings(encoder: Encoder) -> int:
    """What a reader needs: the bytes of all strings, and one for the length of each."""
    if isinstance(encoder, EqualInfoEncoder):
        return sum(len(table) + len(table.blob) for table in encoder.tables)
    strings = encoder.decode(pa.array([[id_] for id_ in range(encoder.vocab_size)]))
    return len(strings) + sum(len(string.as_buffer()) for string in strings)


def _rates_of_zstd(texts: pa.LargeStringArray) -> dict[str, Any]:
    """Of all documents as one stream, and of each by itself."""
    documents = [text.as_buffer().to_pybytes() for text in texts]
    compressor, reader = zstandard.ZstdCompressor(3), zstandard.ZstdDecompressor()
    found = {}
    for scope, parts in (("documents", documents), ("stream", [b"".join(documents)])):
        encode, packed = timed(lambda parts=parts: [compressor.compress(part) for part in parts])
        decode, back = timed(lambda packed=packed: [reader.decompress(part) for part in packed])
        assert back == parts, "zstd: decompressed documents are not the compressed ones"
        found[scope] = {"encode": encode, "decode": decode}
    return found


TASKS = {"build": build, "rates": rates}


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of the first call, of the best later one, and of a processor in the one that took it least."""
    walls, cpus = list[float](), list[float]()
    while len(walls) < 1 + WARM_REPEATS or sum(walls[1:]) < WARM_SECONDS:
        result = None  # let go of the former one outside of the clock
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return {"cold": walls[0], "warm": min(walls[1:]), "cpu": min(cpus[1:])}, result


def little_of(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """The first documents, cut to some bytes in all, for loading code."""
    room, kept = LITTLE, list[str]()
    for text in texts:
        kept.append(text.as_py()[:room])
        room -= len(kept[-1])
        if room <= 0:
            break
    return pa.array(kept, pa.large_string())


def texts_in_a_row(texts: pa.LargeStringArray) -> Texts:
    """The documents as builders take them."""
    offsets, data = offsets_and_bytes(as_large_binary(texts))
    return Texts(data, offsets)


def _faithful(texts: pa.LargeStringArray, window: int, artifact: Path, builder: str, rounds: int) -> None:
    config = EqualInfoConfig(window, builder, rounds=rounds)
    save_equal_info(artifact, [build_dictionary(texts_in_a_row(texts), config)], config.parse, {})


def _pairs(texts: pa.LargeStringArray, window: int, artifact: Path, parse: str) -> None:
    config = EqualInfoConfig(window, parse=parse)
    save_equal_info(artifact, [build_dictionary(texts_in_a_row(texts), config)], parse, {})


def _pairs_by_group(texts: pa.LargeStringArray, window: int, artifact: Path, tables: int) -> None:
    """Several dictionaries, by the stages from JSON lines to a tokenizer, given the memory that the text takes."""
    lines = corpus.write_numbered(artifact.with_name(f"{artifact.name}.jsonl"), texts.to_pylist())
    documents = corpus.ingested(lines, artifact.with_name(f"{artifact.name}-documents"))
    memory = corpus.num_bytes(texts) * TRAINING_BYTES // 1_000_000 + SPARE_MB
    equal_info = EqualInfoConfig(window, tables=tables)
    config = TokenizerConfig("equal-info", memory_mb=memory, equal_info=equal_info)
    train_tokenizer(documents, config, artifact, LocalExecutor(1), Silent())


def _unsplit_bpe(texts: pa.LargeStringArray, window: int, artifact: Path) -> None:
    encoder = ByteEncoder()
    table = learn_table(encoder, encoder.encode(texts), MergeConfig(code_range(window) - BYTE_VALUES, "batch", "none"))
    base = artifact.with_name(f"{artifact.name}-base")
    save_byte(base)
    save_merged(artifact, base, table, {})


def _split_bpe(texts: pa.LargeStringArray, window: int, artifact: Path) -> None:
    save_subword(artifact, train_bpe([texts], code_range(window) + 1), {})  # one id more: the end of a text


FAITHFUL: Mapping[str, Build] = {
    "counts-no-rounds": partial(_faithful, builder="counts", rounds=0),
    "counts": partial(_faithful, builder="counts", rounds=ROUNDS),
    "topn": partial(_faithful, builder="topn", rounds=ROUNDS),
    "stopcell": partial(_faithful, builder="stopcell", rounds=ROUNDS),
}
BEYOND: Mapping[str, Build] = {
    "pairs": partial(_pairs, parse="longest"),
    "pairs-fewest": partial(_pairs, parse="fewest"),
}
BPES: Mapping[str, Build] = {"BPE-unsplit": _unsplit_bpe, "BPE-gpt2": _split_bpe}
SYSTEMS: Mapping[str, Build] = {**FAITHFUL, **BEYOND, **BPES}


def by_group(tables: int) -> str:
    """The name of the system of several dictionaries."""
    return f"pairs-{tables}-tables"


def system(name: str) -> Build:
    """How a vocabulary is built, one of `SYSTEMS` or `by_group`."""
    if name in SYSTEMS:
        return SYSTEMS[name]
    return partial(_pairs_by_group, tables=int(name.split("-")[1]))
