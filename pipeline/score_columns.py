"""What scoring adds to a table: its settings, its columns, and how rows of ids become them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.pipeline.model_steps import Scorer
from seqmill.tokenizers_ext import Encoder, append_id

POOLINGS, DEVICES, DTYPES = ("mean", "last"), ("cpu", "cuda"), ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ScoringConfig:
    """What is told of every document, and how a model reads. The last five may change the last bits of numbers."""

    pooling: str | None = None  # add embeddings: "mean" of the last hidden states, or the "last" of them
    per_token: bool = False  # add the log-probability of every predicted token
    append_eos: bool = True  # put the end-of-document id behind every text; tokens are taken as they are
    max_tokens: int = 16_384  # of one forward pass; a longer document goes alone, in chunks of so many
    unit_bytes: int = 1 << 20  # of text, about, of one work unit
    device: str = "cpu"  # cpu or cuda
    dtype: str = "float32"  # of the weights: float32, bfloat16 or float16
    threads: int = 1  # that each worker computes with, on a processor

    def __post_init__(self) -> None:
        """Refuse what cannot work before any work."""
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UserError(f"pooling = {self.pooling!r}: there is no such embedding; choose {' or '.join(POOLINGS)}")
        for name in ("max_tokens", "unit_bytes", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be 1 or more")
        for name, known in (("device", DEVICES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} = {getattr(self, name)!r}: choose one of {', '.join(known)}")

    def require_end(self, encoder: Encoder, tokenizer: str) -> None:
        """Refuse a tokenizer that lacks the id that is to be appended.

        Raises:
            UserError: it does.
        """
        if self.append_eos and "eos" not in encoder.special_ids:
            raise UserError(
                f"{tokenizer} has no end-of-document id that seqmill knows; score with append_eos = false "
                '(--no-append-eos), or name the id in the artifact\'s seqmill.json under "special_ids"'
            )


def score_fields(config: ScoringConfig, dim: int) -> dict[str, pa.DataType]:
    """The columns that scoring adds, and their types, in this order."""
    return {
        "tokens": pa.uint32(),
        "log_prob": pa.float64(),
        "bits_per_byte": pa.float64(),
        **({"token_log_probs": pa.list_(pa.float32())} if config.per_token else {}),
        **({"embedding": pa.list_(pa.float32(), dim)} if config.pooling else {}),
    }


def score_columns(
    scorer: Scorer,
    ids: pa.Array,
    num_bytes: pa.Array,
    config: ScoringConfig,
    name_of: Callable[[int], str] = "row {}".format,
) -> dict[str, pa.Array]:
    """The columns of `score_fields` for rows of ids.

    Args:
        ids: (large_)list of integers.
        num_bytes: integers, of the text of each row; null where it is not known.
        name_of: what errors call a row.
    """
    found = scorer.read(ids, config.pooling, config.max_tokens, name_of)
    columns = dict(zip(found.schema.names, found.columns, strict=True))
    size = num_bytes.cast(pa.float64())
    size = pc.if_else(pc.equal(size, 0.0), pa.scalar(None, pa.float64()), size)
    columns["bits_per_byte"] = pc.divide(columns["log_prob"], pc.multiply(size, -math.log(2)))
    return {name: columns[name] for name in score_fields(config, scorer.dim)}


def encode_texts(encoder: Encoder, texts: pa.Array, append_eos: bool) -> pa.ListArray:
    """The ids of texts, each with the end-of-document id behind it on request."""
    ids = encoder.encode(texts)
    return append_id(ids, encoder.special_ids["eos"]) if append_eos else ids
