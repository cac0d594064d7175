"""Damage to finished folders, as a disk does it; imported by tests."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from seqmill.storage import read_arrow

HEAD = 3000  # bytes of a file with its metadata, about


def flipped_bits(folder: Path, count: int, seed: int = 0, names: Sequence[str] = ()) -> Iterator[str]:
    """Flip one bit after the other, at `count` places of the files called so (default: all) and as many of their heads;
    put each back."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.iterdir() if path.is_file() and (not names or path.name in names))
    for number in range(2 * count):
        path = rng.choice(files)
        whole = path.read_bytes()
        place = rng.randrange(len(whole) if number % 2 else min(len(whole), HEAD))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(damaged)
        yield f"bit of byte {place} of {path.name}"
        path.unlink()
        path.write_bytes(whole)


def flip_token(shard: Path, row: int) -> int:
    """Flip a bit of the tokens of a row of a shard, in place; returns the row's id."""
    found = read_arrow(shard).slice(row, 1).to_pylist()[0]
    content = bytearray(shard.read_bytes())
    content[content.index(np.array(found["input_ids"], np.uint16).tobytes())] ^= 1
    shard.write_bytes(content)
    return int(found["row_id"])
