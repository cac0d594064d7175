"""What worker processes of the tests run; they import it by name."""

from pathlib import Path

import pyarrow as pa
from gigatoken._parallel import resolve_parallel

from seqmill.tokenizers_ext import load


def encode_texts(tokenizer: Path, texts: list[str]) -> tuple[list[list[int]], bool]:
    """Ids, and whether gigatoken would use all cores here."""
    return load(tokenizer).encode(pa.array(texts)).to_pylist(), resolve_parallel(None)
