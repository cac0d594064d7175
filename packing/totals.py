"""What packed shards add up to, and the manifest entries that say so.

Every shard's `RowTotals` are plain JSON in its unit's record; their sum goes to the manifest, where the validator
checks it against the rows and the planner of a training run reads its step counts.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from seqmill.packing.pack_plan import PackPlan
from seqmill.packing.schema import REPEAT_COLUMN
from seqmill.packing.tokens import TokenStore


@dataclass(frozen=True)
class RowTotals:
    """Counts over packed rows; `+` joins those of two sets of rows, and `RowTotals()` is the empty set."""

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0  # tokens with a target
    segments: int = 0  # fragments of documents
    sum_sq: int = 0  # of segment lengths: the cost of attention, in tokens squared
    max_row_sum_sq: int = 0  # the same, of the costliest row
    min_seqlen: int = 0  # shortest segment, tokens; 0 for no segments
    max_seqlen: int = 0  # longest segment, tokens
    repeat_tokens: int | None = None  # tokens of segments that are repeats; None where the rows do not tell

    def __add__(self, other: "RowTotals") -> "RowTotals":
        shortest = [totals.min_seqlen for totals in (self, other) if totals.segments]
        told = [totals.repeat_tokens for totals in (self, other) if totals.repeat_tokens is not None]
        return RowTotals(
            rows=self.rows + other.rows,
            tokens=self.tokens + other.tokens,
            loss_tokens=self.loss_tokens + other.loss_tokens,
            segments=self.segments + other.segments,
            sum_sq=self.sum_sq + other.sum_sq,
            max_row_sum_sq=max(self.max_row_sum_sq, other.max_row_sum_sq),
            min_seqlen=min(shortest, default=0),
            max_seqlen=max(self.max_seqlen, other.max_seqlen),
            repeat_tokens=sum(told) if told else None,
        )

    def as_json(self) -> dict[str, int]:
        """All counts by name, None left out; `RowTotals(**counts)` is the way back."""
        return {name: count for name, count in asdict(self).items() if count is not None}


def pack_settings(plan: PackPlan, tokens: TokenStore) -> dict[str, Any]:
    """What describes a packed dataset: the "pack" entry of its manifest and of every shard's metadata."""
    tokenizer = tokens.manifest.get("tokenizer", {})
    return {
        "algorithm": plan.algorithm,
        "capacity": plan.capacity,
        "overflow": plan.overflow,
        "seed": plan.seed,
        "vocab_size": tokens.vocab_size,
        "token_dtype": str(tokens.dtype),
        "tokenizer": tokenizer.get("fingerprint"),
        "tokenizer_kind": tokenizer.get("kind"),
        "special_ids": tokenizer.get("special_ids", {}),
        "sources": tokens.sources,
        "positions": "restart",
        "tokens": tokens.manifest.get("fingerprint"),
        **({REPEAT_COLUMN: True} if tokens.has_repeats else {}),
        **({"buckets": plan.buckets.as_json()} if plan.buckets else {}),
        **({"window": plan.window} if plan.window else {}),
    }


def packed_manifest_entries(plan: PackPlan, totals: Iterable[RowTotals], tokens: TokenStore) -> dict[str, Any]:
    """The entries of a packed folder's manifest, for `write_manifest(folder, "packed", files, **entries)`.

    Args:
        totals: one per shard; together all rows of `plan`.

    Returns:
        "pack": `pack_settings`. "totals": the sum of `totals`, with efficiency and lower_bound_rows, and where ids
        occur more than once documents_repeated, the packed documents that share the id of another one before them.
        "drops": the policy, and what went in and did not come out, in documents and tokens; with buckets also
        tokens_target_only, which are in the rows as next_token alone.
    """
    total = sum(totals, RowTotals())
    repeated = _repeated_ids(plan, tokens)
    return {
        "pack": pack_settings(plan, tokens),
        "totals": {
            **total.as_json(),
            "efficiency": plan.efficiency,
            "lower_bound_rows": plan.lower_bound,
            **({"documents_repeated": repeated} if repeated else {}),
        },
        "drops": {
            "policy": plan.overflow,
            "documents_in": plan.documents,
            "tokens_in": plan.tokens + plan.target_only_tokens + plan.dropped_tokens,
            "tokens": plan.dropped_tokens,
            **({"tokens_target_only": plan.target_only_tokens} if plan.buckets else {}),
            "documents": plan.dropped_documents,
            "documents_truncated": plan.truncated_documents,
            "documents_split": plan.split_documents,
            "documents_empty": plan.empty_documents,
        },
    }


def _repeated_ids(plan: PackPlan, tokens: TokenStore) -> int:
    """How many packed documents have the id of another one before them; 8 bytes per document."""
    ids = tokens.doc_ids
    if (ids[1:] > ids[:-1]).all():  # as ingest numbers them
        return 0
    is_packed = np.zeros(len(ids), np.bool_)
    is_packed[plan.item] = True
    packed = ids[is_packed]
    return len(packed) - len(np.unique(packed))
