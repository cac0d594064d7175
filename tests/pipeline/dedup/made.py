"""Documents made for the tests of dedup, and what is left of them."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seqmill.storage import read_arrow

Records = list[dict[str, str]]


def word(number: int) -> str:
    """A word without digits, which the default preset folds: 205 -> "wcaf"."""
    return "w" + "".join("abcdefghij"[int(digit)] for digit in str(number))


def article(seed: int, length: int = 200) -> list[str]:
    draw = random.Random(seed)
    return [word(draw.randrange(5000)) for _ in range(length)]


def changed(words: list[str], places: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    copy = list(words)
    for place in draw.sample(range(len(copy)), places):
        copy[place] = f"new{word(draw.randrange(5000))}"
    return copy


class Deduplicated:
    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.kept = pa.concat_tables(read_arrow(out / file["name"]) for file in manifest["files"])
        self.removed = pq.read_table(out / "removed.parquet")
        self.files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    def kept_ids(self) -> list[str]:
        return self.kept["id"].to_pylist()

    def removed_ids(self) -> dict[str, tuple[str, str]]:
        columns = (self.removed[name].to_pylist() for name in ("id", "reason", "kept_id"))
        return {id_: (reason, kept) for id_, reason, kept in zip(*columns, strict=True)}


def record(id_: str, words: list[str], source: str = "web") -> dict[str, str]:
    return {"id": id_, "text": " ".join(words), "source": source}
