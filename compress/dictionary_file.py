"""Dictionaries in a file, with everything that says what they are.

magic, 8 bytes | length of the header, uint32 | header, JSON | of each table: lengths, uint8 a string; strings | sha256

All numbers are little-endian. The hash, 32 bytes, is of everything before it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqmill.compress.dictionary import Dictionary
from seqmill.errors import UserError
from seqmill.storage import atomic_path, canonical_json

MAGIC = b"seqmillD"
FORMAT = 1
HASH_BYTES = hashlib.sha256().digest_size


def write_dictionaries(path: Path, tables: Sequence[Dictionary], header: Mapping[str, Any]) -> bytes:
    """Write dictionaries and return the file's bytes.

    Args:
        header: JSON values that say what they were built from; the format and the numbers of strings are added.
    """
    described = canonical_json({**header, "format": FORMAT, "strings": [len(table) for table in tables]})
    parts = [MAGIC, len(described).to_bytes(4, "little"), described]
    for table in tables:
        parts += [table.lengths.astype(np.uint8).tobytes(), table.blob.tobytes()]
    contents = b"".join(parts)
    contents += hashlib.sha256(contents).digest()
    with atomic_path(path) as temporary:
        temporary.write_bytes(contents)
    return contents


def read_dictionaries(path: Path) -> tuple[list[Dictionary], dict[str, Any]]:
    """The dictionaries of a file, and its header.

    Raises:
        UserError: the file is none of ours, is cut short or damaged, or was written by another version.
    """
    contents = path.read_bytes()
    if not contents.startswith(MAGIC):
        raise UserError(f"{path} is no dictionary: it begins with {contents[:8]!r}, not {MAGIC!r}")
    body, digest = contents[:-HASH_BYTES], contents[-HASH_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(
            f"{path}: its {len(contents)} bytes do not have the hash that stands at their end; it is cut short or "
            "damaged, and its ids would decode to other text: restore the file, or build the tokenizer again"
        )
    start = len(MAGIC) + 4
    stop = start + int.from_bytes(body[len(MAGIC) : start], "little")
    header = json.loads(body[start:stop])
    if header["format"] != FORMAT:
        raise UserError(f"{path}: dictionary format {header['format']}, this seqmill reads {FORMAT}")
    tables = []
    for strings in header["strings"]:
        lengths = np.frombuffer(body, np.uint8, strings, stop)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        blob = np.frombuffer(body, np.uint8, int(offsets[-1]), stop + strings)
        stop += strings + int(offsets[-1])
        tables.append(Dictionary(offsets, blob))
        tables[-1].check()
    return tables, header
