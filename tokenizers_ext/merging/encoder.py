"""A tokenizer with a merge table on top: merging that is learned once, as an Encoder like all others."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import Encoder
from seqmill.tokenizers_ext.merging.batch import MergeTable, apply_table, expand
from seqmill.tokenizers_ext.merging.boundaries import flat_rows


class MergedEncoder:
    """A base tokenizer whose ids are merged by a table; what it encodes is packed, trained on and decoded as usual."""

    kind = "merged"

    def __init__(self, base: Encoder, table: MergeTable) -> None:
        """Bind a table to the tokenizer of its base ids.

        Raises:
            UserError: the table was learned with another tokenizer.
        """
        if table.fingerprint != base.fingerprint:
            raise UserError(
                f"the merge table was learned with tokenizer {table.fingerprint[:12]}..., its base here is "
                f"{base.fingerprint[:12]}...: restore that one, or learn the merges again"
            )
        self.base = base
        self.table = table
        self.vocab_size = table.vocab_size
        merges = np.stack([table.left, table.right]).astype("<i4").tobytes()
        self.fingerprint = hashlib.sha256(f"{base.fingerprint} {table.rule} ".encode() + merges).hexdigest()

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Those of the base."""
        return self.base.special_ids

    def encode(self, texts: pa.Array) -> pa.ListArray:
        """Merged ids of every document; see `Encoder.encode`."""
        return apply_table(self.base, self.base.encode(texts), self.table)

    def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
        """Bytes of every document; see `Encoder.decode`."""
        values, _ = flat_rows(ids)
        if len(values) and values.max() >= self.vocab_size:
            raise UserError(f"id {values.max()} is outside the vocabulary of {self.vocab_size} ids")
        return self.base.decode(expand(ids, self.table))
