"""Rewrite and sift texts, batch by batch: Unicode form, line ends, empty and short documents.

By default no text is changed, and only empty documents are dropped. What is rewritten or dropped is counted, so that
bytes in = bytes out + dropped + removed by rewriting (a negative number where NFC makes a text longer).
"""

from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.pipeline.funnel import Funnel

UNICODE_FORMS = ("none", "nfc")
NEWLINES = ("keep", "lf")
TEXT = "text"


@dataclass(frozen=True)
class NormaliseConfig:
    """What happens to every text after it has been read."""

    unicode: str = "none"  # "nfc": canonical composition
    newlines: str = "keep"  # "lf": CRLF and lone CR become LF
    min_bytes: int = 1  # documents with fewer bytes of UTF-8 are dropped, measured after rewriting

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible sizes."""
        for key, choices in (("unicode", UNICODE_FORMS), ("newlines", NEWLINES)):
            if getattr(self, key) not in choices:
                raise UserError(f"normalise.{key} = {getattr(self, key)!r}: choose one of {', '.join(choices)}")
        if self.min_bytes < 1:
            raise UserError(f"normalise.min_bytes = {self.min_bytes}: use at least 1, which drops empty documents only")


@dataclass
class Normaliser:
    """Applies a `NormaliseConfig` to batches and counts what it did."""

    config: NormaliseConfig
    funnel: Funnel
    rewritten_documents: int = 0  # of those that were not dropped

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with its text column rewritten and its dropped documents gone."""
        before = batch.column(TEXT)
        sizes_before = _sizes(before)
        after = self._rewrite(before)
        sizes = sizes_before if after is before else _sizes(after)
        kept = self._sift(after, sizes, sizes_before)
        self.funnel.enter(len(sizes), int(sizes_before.sum()))
        if after is not before:
            changed = pc.not_equal(before, after).to_numpy(zero_copy_only=False) & kept
            self.rewritten_documents += int(changed.sum())
            self.funnel.lose("rewritten", 0, int(sizes_before[changed].sum() - sizes[changed].sum()))
            batch = batch.set_column(batch.schema.get_field_index(TEXT), batch.schema.field(TEXT), after)
        self.funnel.leave(int(kept.sum()), int(sizes[kept].sum()))
        return batch if kept.all() else batch.filter(pa.array(kept))

    def stats(self) -> dict[str, Any]:
        """The funnel entry of this stage, with the number of documents rewritten."""
        return {**self.funnel.entry(), "rewritten_documents": self.rewritten_documents}

    def _rewrite(self, text: pa.Array) -> pa.Array:
        if self.config.newlines == "lf":
            text = with_unix_newlines(text)
        if self.config.unicode == "nfc":
            text = composed(text)
        return text

    def _sift(self, text: pa.Array, sizes: np.ndarray, sizes_before: np.ndarray) -> np.ndarray:
        """Which documents stay; the others are counted with the bytes they came with. Whitespace counts as empty."""
        empty = (sizes == 0) | pc.utf8_is_space(text).to_numpy(zero_copy_only=False)
        short = (sizes < self.config.min_bytes) & ~empty
        for reason, dropped in (("empty", empty), ("short", short)):
            self.funnel.lose(reason, int(dropped.sum()), int(sizes_before[dropped].sum()))
        return ~(empty | short)


def with_unix_newlines(text: pa.Array) -> pa.Array:
    """CRLF and CR as LF; `text` itself if it holds no CR. Only texts with a CR are copied twice."""
    mask = pc.match_substring(text, "\r")
    if not pc.any(mask).as_py():
        return text
    replaced = pc.replace_substring(pc.replace_substring(text.filter(mask), "\r\n", "\n"), "\r", "\n")
    return pc.replace_with_mask(text, mask, replaced)


def composed(text: pa.Array) -> pa.Array:
    """Every text in NFC; `text` itself if all of them are.

    ASCII is skipped at memory speed. The rest goes through `unicodedata`, whose quick check returns a text that is
    already composed as the same object: five times faster than `pyarrow.compute.utf8_normalize`, which has none.
    """
    candidates = np.flatnonzero(~pc.string_is_ascii(text).to_numpy(zero_copy_only=False))
    changed: list[int] = []
    results: list[str] = []
    for index in candidates:
        old = text[int(index)].as_py()
        new = normalize("NFC", old)
        if new is not old and new != old:
            changed.append(int(index))
            results.append(new)
    if not changed:
        return text
    mask = np.zeros(len(text), bool)
    mask[changed] = True
    return pc.replace_with_mask(text, pa.array(mask), pa.array(results, text.type))


def _sizes(text: pa.Array) -> np.ndarray:
    return pc.binary_length(text).to_numpy(zero_copy_only=False)
