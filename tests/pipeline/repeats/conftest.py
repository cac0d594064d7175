"""Tokens folders of random documents, with the tokenizer that stages ask for."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from seqmill.manifest import OutputFile, write_manifest
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, describe_tokenizer
from seqmill.storage import with_metadata, write_arrow
from seqmill.tokenizers_ext import load, save_byte

SOURCES = ("books", "code", "web")
WriteTokens = Callable[..., Path]


@pytest.fixture
def write_tokens(tmp_path: Path) -> WriteTokens:
    """write_tokens(lengths): a tokens folder of documents of these lengths, in files of several record batches."""
    used = 0

    def call(
        lengths: Sequence[int], files: int = 3, doc_ids: Sequence[int] | None = None, **more: Sequence[int]
    ) -> Path:
        nonlocal used
        used += 1
        folder = tmp_path / f"tokens-{used}"
        draw = np.random.default_rng(len(lengths))
        table = pa.table(
            {
                "doc_id": pa.array(doc_ids or [(i % 5 << 40) + i for i in range(len(lengths))], pa.uint64()),
                "input_ids": pa.array([draw.integers(0, 257, n).tolist() for n in lengths], pa.list_(pa.uint16())),
                "num_bytes": pa.array([3 * n + i % 2 for i, n in enumerate(lengths)], pa.uint32()),
                "source": pa.array([SOURCES[i * 7 % 3] for i in range(len(lengths))], pa.string()),
                **more,
            }
        )
        save_byte(folder / TOKENIZER_FOLDER)
        encoder = load(folder / TOKENIZER_FOLDER)
        made_with = {"tokenizer": encoder.fingerprint, "vocab_size": encoder.vocab_size, "append_eos": True}
        schema = with_metadata(table.schema, "tokens", **made_with)
        outputs = []
        edges = np.linspace(0, len(lengths), files + 1).astype(int).tolist()
        for number, (first, last) in enumerate(pairwise(edges)):
            name = f"part-{number:05d}.arrow"
            batches = table.slice(first, last - first).cast(schema).to_batches(max_chunksize=7)
            outputs.append(OutputFile.of(folder, name, write_arrow(folder / name, schema, batches)))
        totals = {"documents": len(lengths), "bytes": sum(table["num_bytes"].to_pylist()), "tokens": sum(lengths)}
        write_manifest(
            folder,
            "tokens",
            outputs,
            vocab_size=encoder.vocab_size,
            tokenizer=describe_tokenizer(encoder),
            sources=list(SOURCES),
            totals=totals,
        )
        return folder

    return call
