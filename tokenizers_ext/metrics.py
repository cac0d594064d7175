"""What tells one tokenizer from another: pure functions of an encoder, documents and counts of ids.

A word is a run of bytes other than ASCII white space, as in `bytes.split()`. In scripts that are written without spaces
such a run is a clause or a line: figures per word mean little there, those per character do.

A word is whole if it is one id, alone or behind a space, and split otherwise: " the" is one id of most vocabularies of
English; "the" is one where the tokenizer itself puts a space in front, or keeps white space apart.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.tokenizers_ext.encoder import Encoder, as_large_binary, list_array, offsets_and_bytes
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder

RENYI_ALPHA = 2.5  # the order of which Zouhar et al. 2023 found that it foretells BLEU well (correlation 0.78)

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measured:
    """One number a document, each int64[documents] but for `exact`."""

    bytes: Int64s
    characters: Int64s  # bytes that begin a character of UTF-8
    unspaced: Int64s  # characters of scripts that are written without spaces
    words: Int64s
    split_words: Int64s  # words that take two ids or more, alone and behind a space
    tokens: Int64s
    exact: npt.NDArray[np.bool_]  # whether the ids decode to the document's bytes


def measure(encoder: Encoder, texts: pa.Array) -> tuple[Measured, pa.ListArray, pa.LargeBinaryArray]:
    """Encode documents and decode them again.

    Args:
        texts: (large_)string or (large_)binary without nulls.

    Returns:
        The numbers of every document, its ids, and what these decode to.
    """
    documents = as_large_binary(texts)
    offsets, data = offsets_and_bytes(documents)
    characters, unspaced, words = _count_text(data, offsets)
    ids = encoder.encode(documents)
    decoded = encoder.decode(ids)
    measured = Measured(
        bytes=np.diff(offsets),
        characters=characters,
        unspaced=unspaced,
        words=words,
        split_words=_split_words(encoder, data, offsets, words),
        tokens=np.diff(ids.offsets.to_numpy()).astype(np.int64),
        exact=pc.equal(decoded, documents).to_numpy(zero_copy_only=False),
    )
    return measured, ids, decoded


def is_split(encoder: Encoder, words: pa.LargeBinaryArray) -> npt.NDArray[np.bool_]:
    """Which words take two ids or more, both alone and behind a space: the continued words of
    Rust et al. 2021, "How Good is Your Tokenizer?".

    Args:
        words: without white space; each is encoded as a document of its own, whatever stands around it.
    """
    space, nothing = (pa.scalar(text, pa.large_binary()) for text in (b" ", b""))
    behind_space = pc.binary_join_element_wise(space, words, nothing)
    alone, behind = (np.diff(encoder.encode(each).offsets.to_numpy()) for each in (words, behind_space))
    one = 1 + len(_mark(encoder))
    return (alone > one) & (behind > one)


def token_bytes(encoder: Encoder, ids: np.ndarray) -> pa.LargeBinaryArray:
    """What each id decodes to alone, for integers[n] inside the vocabulary; where there are several tables, in the
    first of them."""
    mark = _mark(encoder)
    values = np.concatenate([np.tile(mark, (len(ids), 1)), ids[:, None]], axis=1, dtype=np.int64).ravel()
    return encoder.decode(list_array(np.arange(len(ids) + 1) * (len(mark) + 1), values, encoder.vocab_size))


def _mark(encoder: Encoder) -> np.ndarray:
    """The ids that every document begins with: int64[0], or int64[1] where one says which table it is written in."""
    several = isinstance(encoder, EqualInfoEncoder) and len(encoder.tables) > 1
    return np.array([encoder.special_ids["table 0"]] if several else [], np.int64)


def renyi_efficiency(counts: np.ndarray, vocab_size: int, alpha: float = RENYI_ALPHA) -> float | None:
    """How evenly a tokenizer uses its vocabulary, from 0 to 1: H_alpha(p) / log |V| with the Renyi entropy
    H_alpha(p) = log(sum p^alpha) / (1 - alpha) of the distribution of ids (Zouhar et al. 2023, "Tokenization and the
    Noiseless Channel").

    Args:
        counts: occurrences of the ids that occur, or of all.
        vocab_size: |V|, all ids, those included that never occur.
        alpha: the order, above 0 and not 1.

    Returns:
        None when there is no token, or only one id.
    """
    present = np.asarray(counts, np.float64)
    present = present[present > 0]
    if not len(present) or vocab_size < 2:
        return None
    shares = present / present.sum()
    return max(0.0, float(np.log((shares**alpha).sum()) / (1 - alpha) / np.log(vocab_size)))


def rank_shares(counts: np.ndarray) -> list[tuple[int, float, float]]:
    """How the tokens are spread over ids, the most frequent id first, at ranks 1, 2, 4, 8, ... and the last:
    (rank, share of the tokens that have this id, share that have an id of this rank or a better one)."""
    ordered = np.sort(counts[counts > 0])[::-1]
    if not len(ordered):
        return []
    ranks = np.unique([*(1 << np.arange(len(ordered).bit_length())), len(ordered)])
    total = ordered.sum()
    so_far = np.cumsum(ordered)
    return [(int(rank), float(ordered[rank - 1] / total), float(so_far[rank - 1] / total)) for rank in ranks]


def _split_words(encoder: Encoder, data: np.ndarray, offsets: np.ndarray, words: Int64s) -> Int64s:
    """How many words of every document are split. Equal words are encoded once."""
    ends = np.zeros(words.sum() + 1, np.int64)
    letters = np.empty(offsets[-1] - offsets[0], np.uint8)
    _copy_words(data, offsets, ends, letters)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(letters)]
    found = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends) - 1, buffers).dictionary_encode()
    split = is_split(encoder, found.dictionary)[found.indices.to_numpy()]
    before = np.concatenate([[0], np.cumsum(split)])
    return np.diff(before[np.concatenate([[0], np.cumsum(words)])])


@numba.njit(nogil=True, cache=True)
def _count_text(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Characters, characters of scripts without spaces, and words of every document."""
    documents = len(offsets) - 1
    characters, unspaced, words = np.zeros((3, documents), np.int64)
    for d in range(documents):
        in_word = False
        for at in range(offsets[d], offsets[d + 1]):
            byte = data[at]
            characters[d] += byte & 0xC0 != 0x80
            if byte & 0xF0 == 0xE0 and at + 1 < offsets[d + 1]:
                unspaced[d] += _is_unspaced((byte & 0xF) << 6 | data[at + 1] & 0x3F)
            elif byte == 0xF0 and at + 1 < offsets[d + 1]:  # rare Han, U+20000 to U+33FFF
                unspaced[d] += 0xA0 <= data[at + 1] <= 0xB3
            space = _is_space(byte)
            words[d] += not space and not in_word
            in_word = not space
    return characters, unspaced, words


@numba.njit(nogil=True, cache=True)
def _copy_words(data: np.ndarray, offsets: np.ndarray, ends: np.ndarray, letters: np.ndarray) -> None:
    """Write all words one after the other, and where each ends: [0, end of the first, ...]."""
    word, out = 0, 0
    for d in range(len(offsets) - 1):
        in_word = False
        for at in range(offsets[d], offsets[d + 1]):
            space = _is_space(data[at])
            if not space:
                word += not in_word
                letters[out] = data[at]
                out += 1
                ends[word] = out
            in_word = not space


@numba.njit(nogil=True, cache=True, inline="always")
def _is_space(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13


@numba.njit(nogil=True, cache=True, inline="always")
def _is_unspaced(block: int) -> bool:
    """Whether the 64 characters from U+(64 * block) on are of Thai, Lao, Tibetan or Burmese, Khmer, kana, or Han."""
    return (
        0x0E00 >> 6 <= block < 0x1080 >> 6
        or 0x1780 >> 6 <= block < 0x1800 >> 6
        or 0x3040 >> 6 <= block < 0x3100 >> 6
        or 0x3400 >> 6 <= block < 0x4DC0 >> 6
        or 0x4E00 >> 6 <= block < 0xA000 >> 6
    )
