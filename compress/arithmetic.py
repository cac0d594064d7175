"""Arithmetic coding that never begins anew: what windows are compared with (Lester et al. 2024: AC and StaticAC).

A range coder of the library constriction over a model's integers: its frequencies are handed over as multiples of
2**-precision, which floats hold exactly, so encoder and decoder make the same intervals of them on any machine.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from seqmill.compress.byte_model import ByteModel, check_frequencies
from seqmill.compress.substring_counts import count_substrings
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel
from seqmill.errors import UserError

CONTEXT = 64  # bytes that the model looks back
TOGETHER = 4096  # contexts a call of the model


def static_model(texts: Texts, precision: int = 14) -> TreeModel:
    """A model of how frequent every byte is, whatever stands before it: StaticAC is the arithmetic code by it."""
    return TreeModel(count_substrings(texts, 0, 1), 0, precision)


@dataclass(frozen=True)
class Coded:
    """A document as the words of an arithmetic code. Its length is not in them."""

    words: np.ndarray  # uint32[words]
    num_bytes: int  # of the document

    @property
    def bits(self) -> int:
        """Of the words; the document's own information is up to 64 bits less."""
        return 32 * len(self.words)

    @property
    def payload(self) -> np.ndarray:
        """uint8[4 * words]: the code as ids below 256, the first bits first."""
        return self.words.astype(">u4").view(np.uint8)


@dataclass(frozen=True, eq=False)
class ArithmeticCoder:
    """One code for the whole of a document, by a model that sees the last bytes before each."""

    model: ByteModel
    context: int = CONTEXT  # bytes

    def encode(self, text: bytes) -> Coded:
        """The code of a document: -log2 of its probability in bits, rounded up to words."""
        constriction = _constriction()
        coder = constriction.stream.queue.RangeEncoder()
        family = constriction.stream.model.Categorical(perfect=False)
        for first in range(0, len(text), TOGETHER):
            last = min(first + TOGETHER, len(text))
            contexts = [text[max(at - self.context, 0) : at] for at in range(first, last)]
            symbols = np.frombuffer(text[first:last], np.uint8).astype(np.int32)
            coder.encode(symbols, family, self._probabilities(contexts))
        return Coded(coder.get_compressed(), len(text))

    def decode(self, coded: Coded) -> bytes:
        """The document, byte by byte.

        Raises:
            UserError: the words are no code of a document of that length by this model.
        """
        constriction = _constriction()
        coder = constriction.stream.queue.RangeDecoder(coded.words)
        family = constriction.stream.model.Categorical(perfect=False)
        text = bytearray()
        try:
            for at in range(coded.num_bytes):
                shares = self._probabilities([bytes(text[max(at - self.context, 0) :])])
                text.append(int(coder.decode(family, shares)[0]))
        except (AssertionError, ValueError):  # an impossible word
            text.clear()
        if not np.array_equal(self.encode(bytes(text)).words, coded.words):
            raise UserError(
                f"{len(coded.words)} words are no arithmetic code of {coded.num_bytes} bytes by this model: they were "
                "cut off or damaged, or another model made them"
            )
        return bytes(text)

    def _probabilities(self, contexts: list[bytes]) -> np.ndarray:
        frequencies = self.model.frequencies(contexts)
        check_frequencies(frequencies, self.model.precision)
        return frequencies / np.float64(1 << self.model.precision)


def _constriction() -> ModuleType:
    try:
        import constriction
    except ImportError as error:
        raise UserError("arithmetic coding needs the library constriction: pip install 'seqmill[compress]'") from error
    return constriction
