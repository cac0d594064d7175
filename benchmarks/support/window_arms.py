"""Ways of giving a text to a language model as ids: bytes, BPE, arithmetic codes, and windows of equal information.

Every arm learns from one text and encodes another; what a document's ids end with, and so where the next begins, is an
id of its own, above all others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from seqmill.compress.arithmetic import ArithmeticCoder, static_model
from seqmill.compress.byte_model import ByteModel
from seqmill.compress.code_range import code_range
from seqmill.compress.ngram_model import ngram_model
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel
from seqmill.compress.window_coder import WindowCoder
from seqmill.pipeline.build_tokenizer import EqualInfoConfig, build_dictionary
from seqmill.tokenizers_ext.byte_level import BYTE_VALUES, ByteEncoder
from seqmill.tokenizers_ext.encoder import Encoder
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder
from seqmill.tokenizers_ext.merging import MergeConfig, MergedEncoder, learn_table
from seqmill.tokenizers_ext.subword import SubwordEncoder
from seqmill.tokenizers_ext.training import train_bpe

from .vocabularies import ROUNDS

WINDOW = 12  # bits of the windows that are one id each, and so log2 of the strings of all vocabularies
PRECISION = 14  # bits of the byte model's frequencies

Codes = list[np.ndarray]  # ids of every document


@dataclass(frozen=True)
class Source:
    """The text that arms learn from."""

    passages: list[bytes]
    order: int  # bytes of context of the byte model

    @property
    def texts(self) -> Texts:
        """For builders and byte models."""
        return Texts.of(self.passages)

    @property
    def column(self) -> pa.LargeBinaryArray:
        """For tokenizers."""
        return pa.array(self.passages, pa.large_binary())

    @cached_property
    def model(self) -> TreeModel:
        """What expects the next byte of windows that are cut into ids of 8 bits."""
        return ngram_model(self.texts, self.order, precision=PRECISION)


@dataclass(frozen=True)
class Arm:
    """A way of giving text to a model."""

    ids: int  # that stand for text; `ids` itself ends a document
    encode: Callable[[Sequence[bytes]], Codes]


def _of_encoder(encoder: Encoder, ids: int) -> Arm:
    def encode(passages: Sequence[bytes]) -> Codes:
        column = pa.array(passages, pa.large_binary())
        return [one.values.to_numpy() for one in encoder.encode(column)]

    return Arm(ids, encode)


def _bytes(_: Source) -> Arm:
    return Arm(BYTE_VALUES, lambda passages: [np.frombuffer(passage, np.uint8) for passage in passages])


def _split_bpe(source: Source) -> Arm:
    texts = [passage.decode(errors="replace") for passage in source.passages]
    size = code_range(WINDOW) + 1
    encoder = SubwordEncoder(train_bpe([texts], size))
    return _of_encoder(encoder, max(size, encoder.vocab_size))


def _unsplit_bpe(source: Source) -> Arm:
    base = ByteEncoder()
    merges = MergeConfig(code_range(WINDOW) - BYTE_VALUES, "batch", "none")
    encoder = MergedEncoder(base, learn_table(base, base.encode(source.column), merges))
    return _of_encoder(encoder, encoder.vocab_size)


def _arithmetic(model: ByteModel) -> Arm:
    coder = ArithmeticCoder(model)
    return Arm(256, lambda passages: [coder.encode(passage).payload for passage in passages])


def _windows(window: int, resets_model: bool = True) -> Callable[[Source], Arm]:
    def arm(source: Source) -> Arm:
        coder = WindowCoder(source.model, window, view=256, resets_model=resets_model)

        def encode(passages: Sequence[bytes]) -> Codes:
            texts = Texts.of(passages)
            ids, ends = coder.encode_batch(texts.data, texts.offsets)
            return np.split(ids, ends[1:-1])

        return Arm(256, encode)

    return arm


def _dictionary(builder: str, rounds: int) -> Callable[[Source], Arm]:
    def arm(source: Source) -> Arm:
        table = build_dictionary(source.texts, EqualInfoConfig(WINDOW, builder, rounds=rounds))
        return _of_encoder(EqualInfoEncoder([table]), len(table))

    return arm


def _pairs(source: Source) -> Arm:
    table = build_dictionary(source.texts, EqualInfoConfig(WINDOW))
    return _of_encoder(EqualInfoEncoder([table]), len(table))


ARMS: Mapping[str, Callable[[Source], Arm]] = MappingProxyType(
    {
        "bytes": _bytes,
        "bpe": _split_bpe,
        "bpe-unsplit": _unsplit_bpe,
        "ac": lambda source: _arithmetic(source.model),
        "static-ac": lambda source: _arithmetic(static_model(source.texts, PRECISION)),
        "eiw16": _windows(16),
        "eiw16-never": _windows(16, resets_model=False),
        "eiw32": _windows(32),
        "eiw64": _windows(64),
        "eiw128": _windows(128),
        "eiw12": _dictionary("stopcell", 0),
        "eiw12-reest": _dictionary("stopcell", ROUNDS),
        "eiw12-topn": _dictionary("topn", ROUNDS),
        "eiw12-counts": _dictionary("counts", ROUNDS),
        "eiw12-pairs": _pairs,
    }
)
"""By name: eiw is windows of so many bits, cut into ids of 8 bits; eiw12 are windows that are one id each."""
