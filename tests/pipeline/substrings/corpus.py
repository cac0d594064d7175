"""Small corpora for the tests of this folder: texts that repeat themselves, and folders of documents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from seqmill.manifest import OutputFile, write_manifest
from seqmill.storage import with_metadata, write_arrow

Documents = list[tuple[str, str]]  # text, source
SCHEMA = pa.schema({"doc_id": pa.uint64(), "id": pa.string(), "text": pa.large_string(), "source": pa.string()})

_pieces = st.one_of(
    st.text("ab", max_size=12),
    st.builds(lambda unit, times: unit * times, st.text("abé漢😀", min_size=1, max_size=5), st.integers(1, 20)),
    st.text("aé漢😀\u0301", max_size=8),
)


@st.composite
def repetitive_texts(draw: st.DrawFn) -> list[str]:
    """Documents made of few pieces, so that they share spans with each other and within."""
    pieces = draw(st.lists(_pieces, min_size=1, max_size=5))
    picks = st.lists(st.sampled_from(pieces), max_size=6)
    return ["".join(chosen) for chosen in draw(st.lists(picks, max_size=6))]


def joined(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The texts as bytes uint8[...] behind some others, and positions int64[documents + 1] in them."""
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"head" + b"".join(encoded) + b"tail", np.uint8)
    return data, np.cumsum([4, *map(len, encoded)], dtype=np.int64)


def write_documents(folder: Path, documents: Documents, per_part: int = 1000, per_batch: int = 1000) -> Path:
    """A finished documents folder; ids are d0, d1, ..."""
    schema = with_metadata(SCHEMA, "documents")
    files = []
    for part, first in enumerate(range(0, max(1, len(documents)), per_part)):
        table = [(first + k, f"d{first + k}", *one) for k, one in enumerate(documents[first : first + per_part])]
        columns = [pa.array([row[k] for row in table], field.type) for k, field in enumerate(SCHEMA)]
        batches = pa.Table.from_arrays(columns, schema=schema).to_batches(max_chunksize=per_batch)
        name = f"part-{part:05d}.arrow"
        files.append(OutputFile.of(folder, name, write_arrow(folder / name, schema, batches)))
    write_manifest(folder, "documents", files)
    return folder
