"""The documents a benchmark runs on: ours in Arrow, and the same ones as JSON lines for the peers."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from seqmill.manifest import open_manifest
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent

EXAMPLES = Path(__file__).parents[2] / "examples" / "corpus"
PARTS = 16  # that documents can be divided into


def ingested(inputs: Path, out: Path, keep: tuple[str, ...] = ()) -> Path:
    """A documents folder of everything in `inputs`, with the fields `keep` besides."""
    files = tuple(str(path) for path in sorted(inputs.iterdir())) if inputs.is_dir() else (str(inputs),)
    ingest(IngestConfig(files, keep_fields=keep), NormaliseConfig(), out, LocalExecutor(1), Silent())
    return out


def batches(documents: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a documents folder, in order."""
    for file in open_manifest(documents, "documents")["files"]:
        yield from document_batches(documents / file["name"])


def texts_of(documents: Path) -> pa.Array:
    """All texts, one large_string array."""
    return pa.concat_arrays([batch.column("text") for batch in batches(documents)])


def some_texts(data: Path | None, scratch: Path, most_bytes: int) -> pa.Array:
    """About `most_bytes` of the texts of a file or folder, evenly over it; default: examples/corpus."""
    return even_sample(texts_of(ingested(data or EXAMPLES, scratch)), most_bytes)


def num_bytes(texts: pa.Array) -> int:
    """UTF-8 bytes of all texts."""
    return int(sum(len(text.as_buffer()) for text in texts))


def even_sample(texts: pa.Array, most_bytes: int) -> pa.Array:
    """Every k-th text, with k such that about `most_bytes` remain: sources lie one after the other."""
    step = -(-num_bytes(texts) // most_bytes)
    return texts.take(pa.array(range(0, len(texts), max(1, step))))


def write_json_lines(path: Path, ids: Sequence[str], texts: Sequence[str]) -> Path:
    """One {"id", "text"} a line."""
    with path.open("w", encoding="utf-8") as file:
        for id_, text in zip(ids, texts, strict=True):
            file.write(json.dumps({"id": id_, "text": text}, ensure_ascii=False) + "\n")
    return path


def write_numbered(path: Path, texts: Sequence[str]) -> Path:
    """Texts as `write_json_lines` does, with their places for ids."""
    return write_json_lines(path, [str(k) for k in range(len(texts))], texts)


def as_json_lines(documents: Path, path: Path) -> Path:
    """A documents folder as JSON lines with its ids."""
    ids = [id_ for batch in batches(documents) for id_ in batch.column("id").to_pylist()]
    return write_json_lines(path, ids, texts_of(documents).to_pylist())


def columns(documents: Path, names: Sequence[str]) -> dict[str, list[str | None]]:
    """Text fields of all documents, those that were kept; None of what a record lacks."""
    found: dict[str, list[str | None]] = {name: [] for name in names}
    for batch in batches(documents):
        for name in names:
            found[name] += batch.column(name).to_pylist()
    return found


def english_texts(inputs: Path, out: Path) -> pa.Array:
    """The texts of everything in `inputs`, of which `out` receives the documents folder; where records have a field
    lang and any is in English, only of those."""
    documents = ingested(inputs, out, ("lang",))
    texts, languages = texts_of(documents), columns(documents, ("lang",))["lang"]
    return texts.filter(pa.array([language == "en" for language in languages])) if "en" in languages else texts


def part_of(text: bytes) -> int:
    """0 to 15, by a document's text alone: copies are in one part."""
    return hashlib.blake2b(text, digest_size=1).digest()[0] % PARTS


def parts_of(texts: pa.Array) -> np.ndarray:
    """int64[texts]: the part of each."""
    return np.array([part_of(text.as_buffer().to_pybytes()) for text in texts], np.int64)
