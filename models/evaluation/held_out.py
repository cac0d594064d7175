"""Held-out documents: which ones an evaluation reads, and in which windows.

A document longer than the context is read in windows that overlap, and each of its tokens is charged to the first one
that predicts it:

    context 4, stride 2     a b c d e f g h
    window 0                a b c d             charged: b c d e, which saw 1 to 4 tokens
    window 1                    c d e f         charged: f g, which saw 3 and 4 (and not 1 and 2)
    window 2                        e f g       charged: h
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError
from seqmill.models.evaluation.source_loss import SourceLoss

if TYPE_CHECKING:
    from seqmill.packing import TokenStore

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which documents are read, and how. Only the first two and `seed` choose; the next three decide the result.

    Raises:
        UserError: a value is impossible.
    """

    documents: int | None = None  # at most so many of them; None: all
    max_bytes: int | None = None  # of their text at most, but at least one document; None: no limit
    seed: int = 0  # of the hash of document ids by whose order they are taken, the same ones for every tokenizer
    context: int = 2048  # tokens that a window reads at most
    stride: int | None = None  # tokens between the beginnings of windows; None: half of the context
    start_id: int | None = None  # id that stands before every document and is known
    batch_tokens: int = 16_384  # of one forward pass at most, or one window

    def __post_init__(self) -> None:
        least = {"documents": 1, "max_bytes": 1, "seed": 0, "context": 1, "stride": 1, "start_id": 0, "batch_tokens": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"evaluation {name} = {value}: must be {bound} or more")
        if self.step > self.context:
            raise UserError(
                f"evaluation stride = {self.stride} is more than context = {self.context}: tokens between two windows "
                "would never be charged; lower the stride"
            )

    @property
    def step(self) -> int:
        """The stride, or half of the context."""
        return self.stride if self.stride is not None else max(1, self.context // 2)


class HeldOut:
    """The documents that an evaluation reads, chosen once and read again for every evaluation.

    Attributes:
        config: how they were chosen and are read.
        items: int64[documents], their numbers in the tokens, in the order of their hashes.
        num_bytes: int64[documents], of the text of each.
    """

    def __init__(self, store: "TokenStore", num_bytes: npt.NDArray[np.integer], config: EvaluationConfig) -> None:
        """Choose among the documents of `store`, whose texts have these sizes; about 30 bytes a document meanwhile.

        Raises:
            UserError: there are none.
        """
        from seqmill.packing.permutation import keyed_numbers, round_keys  # here: generating needs no packed rows

        if not store.documents:
            raise UserError("there are no documents to evaluate on; hold out more, or leave the evaluation out")
        self.store, self.config = store, config
        order = np.argsort(keyed_numbers(store.doc_ids, 0, round_keys("evaluation", config.seed)), kind="stable")
        order = order[: config.documents]
        sizes = np.asarray(num_bytes, np.int64)[order]
        if config.max_bytes is not None:
            fitting = int(np.searchsorted(np.cumsum(sizes), config.max_bytes, "right"))
            order, sizes = order[: max(1, fitting)], sizes[: max(1, fitting)]
        self.items: Int64s = order.astype(np.int64)
        self.num_bytes: Int64s = sizes

    @classmethod
    def open(cls, tokens: Path | str, config: EvaluationConfig, tokenizer: str | None = None) -> "HeldOut":
        """The documents of a folder that `seqmill tokenize` wrote; kept mapped, so that only what is used is read.

        Args:
            tokenizer: fingerprint of the model's tokenizer; None leaves it unchecked.

        Raises:
            UserError: it is no finished tokens folder, has no documents, or another tokenizer made it.
        """
        from seqmill.manifest import open_manifest
        from seqmill.packing import TokenStore
        from seqmill.storage import read_arrow

        tokens = Path(tokens)
        manifest = open_manifest(tokens)
        if manifest["kind"] != "tokens":
            raise UserError(
                f"{tokens} holds {manifest['kind']}, but documents are evaluated whole and by their bytes; name the "
                "tokens folder of the held-out documents, the --out of `seqmill tokenize`"
            )
        made_by = manifest.get("tokenizer", {}).get("fingerprint")
        if tokenizer is not None and made_by != tokenizer:
            raise UserError(
                f"the tokenizer of {tokens} ({str(made_by)[:16]}) is not the one of the training data "
                f"({tokenizer[:16]}), so its ids mean other texts; tokenize the held-out documents with the latter"
            )
        tables = [read_arrow(tokens / file["name"]) for file in manifest["files"]]
        if not all("num_bytes" in table.column_names for table in tables):
            raise UserError(f"{tokens} has no column num_bytes, so nothing is known per byte; tokenize again")
        sizes = [table.column("num_bytes").to_numpy() for table in tables]
        return cls(TokenStore(tables, manifest), np.concatenate([np.empty(0, np.uint32), *sizes]), config)

    def require_vocabulary(self, vocab_size: int) -> None:
        """Whether a model of so many ids knows all of these.

        Raises:
            UserError: it does not.
        """
        if self.store.vocab_size > vocab_size:
            raise UserError(
                f"the held-out tokens have a vocabulary of {self.store.vocab_size} ids, the model one of {vocab_size}; "
                "tokenize them with the tokenizer that the model was trained with"
            )

    @cached_property
    def lengths(self) -> Int64s:
        """Tokens of each document, int64[documents]."""
        return self.store.length_of(self.items)

    @cached_property
    def sources(self) -> npt.NDArray[np.int16]:
        """The source of each document, int16[documents], as a position in `store.sources`."""
        return self.store.source_of(self.items)

    def beginnings(self, count: int, tokens: int) -> list[list[int]]:
        """The first tokens of the first `count` documents that have more than those: prompts that have an end."""
        long = np.flatnonzero(self.lengths > tokens)[:count]
        ids = self.store.gather(self.items[long], np.zeros_like(long), np.full_like(long, tokens))
        found: list[list[int]] = ids.reshape(-1, tokens).tolist()
        return found

    def counts(self) -> dict[str, SourceLoss]:
        """Documents, tokens, targets, bytes and nats of first tokens, by source: all that needs no model."""
        first_nats = np.full(len(self.items), math.log(self.store.vocab_size))
        told = self.lengths > 0
        if self.config.start_id is not None:
            some = self.items[told]
            firsts = self.store.gather(some, np.zeros_like(some), np.ones_like(some))
            first_nats[told] *= firsts != self.config.start_id
        columns = (np.ones_like(self.lengths), self.lengths, np.maximum(self.lengths - 1, 0), self.num_bytes)
        found = {}
        for number, name in enumerate(self.store.sources):
            own = self.sources == number
            documents, tokens, targets, num_bytes = (int(column[own].sum()) for column in columns)
            first = math.fsum(first_nats[own & told])
            found[name] = SourceLoss(documents, tokens, targets, num_bytes, first_nats=first)
        return found

    @cached_property
    def windows(self) -> "Windows":
        """Of all documents."""
        return Windows.of(self.lengths, self.config.context, self.config.step)


@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of documents, the longest first, so that those of one forward pass are of about one length."""

    document: Int64s  # place in HeldOut.items
    start: Int64s  # first token that is read
    stop: Int64s  # one past the last that is read; the token there is the last target
    skip: Int64s  # targets that an earlier window is charged with

    @classmethod
    def of(cls, lengths: Int64s, context: int, stride: int) -> "Windows":
        """All windows of documents of these lengths; one for those without a second token is left out."""
        inputs = np.maximum(lengths - 1, 0)
        count = np.where(inputs > 0, 1 + np.maximum(-(-(inputs - context) // stride), 0), 0)
        document = np.repeat(np.arange(len(lengths)), count)
        number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
        start = number * stride
        stop = np.minimum(start + context, inputs[document])
        skip = np.where(number > 0, context - stride, 0)
        order = np.argsort(start - stop, kind="stable")
        return cls(document[order], start[order], stop[order], skip[order])

    def batches(self, most_tokens: int) -> list[slice]:
        """Windows one after the other, of at most so many tokens together, or one."""
        ends = np.cumsum(self.stop - self.start)
        found, first, before = [], 0, 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, before + most_tokens, "right")))
            found.append(slice(first, last))
            first, before = last, int(ends[last - 1])
        return found
