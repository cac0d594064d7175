"""What packed shards add up to, and the manifest entries that say so.

Every shard's `RowTotals` are plain JSON in its unit's record; their sum goes to the manifest, where the validator
checks it against the rows and the planner of a training run reads its step counts.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from seqmill.packing.pack_plan import ALGORITHM, PackPlan
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

    def __add__(self, other: "RowTotals") -> "RowTotals":
        shortest = [totals.min_seqlen for totals in (self, other) if totals.segments]
        return RowTotals(
            rows=self.rows + other.rows,
            tokens=self.tokens + other.tokens,
            loss_tokens=self.loss_tokens + other.loss_tokens,
            segments=self.segments + other.segments,
            sum_sq=self.sum_sq + other.sum_sq,
            max_row_sum_sq=max(self.max_row_sum_sq, other.max_row_sum_sq),
            min_seqlen=min(shortest, default=0),
            max_seqlen=max(self.max_seqlen, other.max_seqlen),
        )

    def as_json(self) -> dict[str, int]:
        """All counts by name; `RowTotals(**counts)` is the way back."""
        return asdict(self)


def pack_settings(plan: PackPlan, tokens: TokenStore) -> dict[str, Any]:
    """What describes a packed dataset: the "pack" entry of its manifest and of every shard's metadata."""
    tokenizer = tokens.manifest.get("tokenizer", {})
    return {
        "algorithm": ALGORITHM,
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
    }


def packed_manifest_entries(plan: PackPlan, totals: Iterable[RowTotals], tokens: TokenStore) -> dict[str, Any]:
    """The entries of a packed folder's manifest, for `write_manifest(folder, "packed", files, **entries)`.

    Args:
        totals: one per shard; together all rows of `plan`.

    Returns:
        "pack": `pack_settings`. "totals": the sum of `totals`, with efficiency and lower_bound_rows. "drops": the
        policy, and what went in and did not come out, in documents and tokens.
    """
    total = sum(totals, RowTotals())
    return {
        "pack": pack_settings(plan, tokens),
        "totals": {**total.as_json(), "efficiency": plan.efficiency, "lower_bound_rows": plan.lower_bound},
        "drops": {
            "policy": plan.overflow,
            "documents_in": plan.documents,
            "tokens_in": plan.tokens + plan.dropped_tokens,
            "tokens": plan.dropped_tokens,
            "documents": plan.dropped_documents,
            "documents_truncated": plan.truncated_documents,
            "documents_split": plan.split_documents,
            "documents_empty": plan.empty_documents,
        },
    }
