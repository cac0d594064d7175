"""Documents as tokens for an experiment: divided into those to train on and those held out, some, or all as one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import OutputFile, open_manifest, write_manifest
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, TokenizeConfig, put_tokenizer, tokenize
from seqmill.pipeline.train_tokenizer import TokenizerConfig, train_tokenizer
from seqmill.storage import read_arrow, write_arrow

from . import corpus


def divided_tokens(scratch: Path, data: Path, vocab_size: int, part: int, most_bytes: int) -> tuple[Path, Path]:
    """Tokens folders of the documents to train on and of those held out, by a BPE learned from the former.

    Args:
        data: a file or folder that `seqmill ingest` reads; only what is in English, if anything is.
        part: which of `corpus.PARTS` is held out.
        most_bytes: of held-out text, about; further documents of the part are left out.

    Raises:
        UserError: one of the two has no documents.
    """
    executor, progress = LocalExecutor(1), Silent()
    texts = corpus.english_texts(data, scratch / "all")
    is_held_out = pa.array(corpus.parts_of(texts) == part)
    parts = {"training": texts.filter(pc.invert(is_held_out)), "held-out": texts.filter(is_held_out)}
    if not all(map(len, parts.values())):
        raise UserError(f"--data {data}: {len(texts)} documents are too few to be divided; give more")
    parts["held-out"] = corpus.even_sample(parts["held-out"], most_bytes)
    for name, own in parts.items():
        ids = [str(number) for number in range(len(own))]
        lines = corpus.write_json_lines(scratch / f"{name}.jsonl", ids, own.to_pylist())
        documents = corpus.ingested(lines, scratch / f"{name}-documents")
        if name == "training":
            config = TokenizerConfig(vocab_size=vocab_size)
            train_tokenizer(documents, config, scratch / "tokenizer", executor, progress)
        tokenize(documents, scratch / "tokenizer", TokenizeConfig(), scratch / name, executor, progress)
    return scratch / "training", scratch / "held-out"


def read_tokens(tokens: Path) -> pa.Table:
    """All documents of a finished tokens folder, mapped."""
    return pa.concat_tables([read_arrow(tokens / file["name"]) for file in open_manifest(tokens, "tokens")["files"]])


def write_tokens(out: Path, like: Path, documents: pa.Table) -> Path:
    """A tokens folder of these documents, whose ids are of the tokenizer of the folder `like`."""
    manifest = open_manifest(like, "tokens")
    out.mkdir()
    put_tokenizer(like / TOKENIZER_FOLDER, out, manifest["tokenizer"])
    rows = write_arrow(out / "part-00000.arrow", documents.schema, documents.to_batches())
    same = {name: manifest[name] for name in ("vocab_size", "tokenizer")}
    sources = sorted(documents["source"].unique().to_pylist())
    write_manifest(out, "tokens", [OutputFile.of(out, "part-00000.arrow", rows)], sources=sources, **same)
    return out


def first_tokens(documents: pa.Table, tokens: int) -> pa.Table:
    """The first documents that have so many tokens, the last of them cut; or all."""
    ids = documents["input_ids"].combine_chunks()
    ends = np.cumsum(pc.list_value_length(ids).to_numpy(), dtype=np.int64)
    last = int(np.searchsorted(ends, tokens))
    offsets = np.concatenate([[0], np.minimum(ends[: last + 1], tokens)]).astype(np.int32)
    place = documents.schema.get_field_index("input_ids")
    lists = pa.ListArray.from_arrays(pa.array(offsets), ids.flatten())
    return documents.slice(0, last + 1).set_column(place, documents.schema.field(place), lists)


def joined(documents: pa.Table) -> pa.Table:
    """One document of all tokens, one after the other: a packer cuts it anywhere and keeps nothing in it apart."""
    ids = documents["input_ids"].combine_chunks().flatten()
    columns = {
        "doc_id": pa.array([0], pa.uint64()),
        "input_ids": pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids),
        "num_bytes": pa.array([pc.sum(documents["num_bytes"]).as_py()], pa.uint32()),
        "source": documents["source"].combine_chunks()[:1],
    }
    return pa.table([columns[name] for name in documents.column_names], schema=documents.schema)
