"""A word bigram model of reference documents: writes traps where no trained model is at hand, and judges them.

The probability of word w behind word v is interpolated with that of w alone (Dirichlet smoothing, MacKay and Peto
1995), and that of w alone with one more occurrence of everything:

    P(w | v) = (count(v, w) + PRIOR * P(w)) / (count(v, any) + PRIOR)
    P(w)     = (count(w) + 1) / (words + vocabulary + 1)

A word beyond the vocabulary counts as the unknown word, which is never written.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.sampling import drawn

PRIOR = 4.0  # how many occurrences of v the probability of w alone weighs as much as
SMOOTHING = f"word bigrams, Dirichlet prior of weight {PRIOR:g} on add-one unigrams"


class WordModel:
    """Word and bigram counts of a sample of documents. Word i is `words[i]`; len(words) is the unknown word."""

    def __init__(self, texts: Sequence[pa.Array], most_words: int) -> None:
        """Count the white-space separated words of large_string arrays; the `most_words` most frequent ones stay.

        Raises:
            UserError: there are fewer than 2 different words.
        """
        lists = [pc.utf8_split_whitespace(pc.utf8_trim_whitespace(text)) for text in texts]
        flat = pa.chunked_array([pc.list_flatten(each) for each in lists], pa.large_string())
        flat = flat.filter(pc.not_equal(flat, "")).combine_chunks()
        counted = pa.Table.from_struct_array(flat.value_counts()).sort_by(
            [("counts", "descending"), ("values", "ascending")]
        )
        vocabulary = counted["values"].combine_chunks()[:most_words]
        if len(vocabulary) < 2:
            raise UserError(
                f"the reference documents have {len(vocabulary)} different words: traps cannot be made of them; "
                "give longer reference documents, or --model"
            )
        self.words: list[str] = vocabulary.to_pylist()
        self.known = {word: index for index, word in enumerate(self.words)}
        size = len(self.words)
        counts = np.append(counted["counts"].to_numpy()[:size], len(flat) - counted["counts"].to_numpy()[:size].sum())
        self._alone = (counts + 1.0) / (counts.sum() + size + 1)
        pairs = np.concatenate([_pairs(each, vocabulary) for each in lists])
        self._codes, self._pair_counts = np.unique(pairs[:, 0] * (size + 1) + pairs[:, 1], return_counts=True)
        first, second = np.divmod(self._codes, size + 1)
        self._behind = np.bincount(first, self._pair_counts, size + 1)
        is_known = second < size
        begin = np.searchsorted(first[is_known], np.arange(size + 2))  # of the pairs of each first word
        self._pairs = begin, second[is_known], self._pair_counts[is_known]
        self._weights_at: dict[float, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}

    @classmethod
    def of_documents(cls, documents: Path, most_bytes: int, most_words: int, seed: int) -> "WordModel":
        """Count in at most about `most_bytes` of a documents folder; documents are drawn by a hash of their id."""
        manifest = open_manifest(documents, "documents")
        share = min(1.0, most_bytes / max(1, manifest["totals"]["bytes"]))
        return cls(list(_sampled(documents, manifest, share, seed)), most_words)

    def write(self, words: int, texts: int, temperature: float, random: np.random.Generator) -> list[str]:
        """`texts` texts of `words` words; a temperature below 1 prefers likely words, one above 1 evens them out."""
        size = len(self.words)
        chosen = np.empty((texts, words), np.int64)
        chosen[:, 0] = random.choice(size, texts, p=self._alone[:size] / self._alone[:size].sum())
        _continue(chosen, random.random((texts, words)), *self._weights(temperature))
        return [" ".join(self.words[word] for word in row) for row in chosen.tolist()]

    def _weights(self, temperature: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The arguments of `_continue` for a temperature, worked out once."""
        if temperature not in self._weights_at:
            begin, second, counts = self._pairs
            alone = PRIOR * self._alone[: len(self.words)]
            excess = (counts + alone[second]) ** (1 / temperature) - alone[second] ** (1 / temperature)
            cumulated = np.cumsum(alone ** (1 / temperature))
            self._weights_at[temperature] = cumulated, begin, second, _cumulate_each(excess, begin)
        return self._weights_at[temperature]

    def perplexity(self, text: str) -> float:
        """exp of the mean negative log-probability of the text's words, the first one alone and each behind its
        predecessor."""
        unknown = len(self.words)
        ids = np.array([self.known.get(word, unknown) for word in text.split()])
        codes = ids[:-1] * (unknown + 1) + ids[1:]
        place = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        counts = np.where(self._codes[place] == codes, self._pair_counts[place], 0) if len(self._codes) else 0 * codes
        behind = (counts + PRIOR * self._alone[ids[1:]]) / (self._behind[ids[:-1]] + PRIOR)
        return float(np.exp(-np.log(np.append(behind, self._alone[ids[0]])).mean()))


def _sampled(documents: Path, manifest: dict[str, Any], share: float, seed: int) -> Iterator[pa.Array]:
    for file in manifest["files"]:
        for batch in document_batches(documents / file["name"]):
            chosen = drawn(batch.column("doc_id").to_numpy(), share, seed)
            yield batch.column("text").filter(pa.array(chosen)).cast(pa.large_string())


def _pairs(lists: pa.Array, vocabulary: pa.Array) -> np.ndarray:
    """int64[pairs, 2]: neighbouring words of the same document, the unknown word included."""
    ids = pc.fill_null(pc.index_in(lists.flatten(), vocabulary), len(vocabulary)).to_numpy().astype(np.int64)
    document = pc.list_parent_indices(lists).to_numpy()
    same = document[1:] == document[:-1]
    return np.stack([ids[:-1][same], ids[1:][same]], axis=1) if len(ids) else np.empty((0, 2), np.int64)


@njit(cache=True, nogil=True)
def _cumulate_each(values: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Sums from the beginning of each range begin[i] .. begin[i + 1]; a sum over all would drown the small ranges."""
    sums = values.copy()
    for index in range(begin.size - 1):
        for place in range(begin[index] + 1, begin[index + 1]):
            sums[place] += sums[place - 1]
    return sums


@njit(cache=True, nogil=True)
def _continue(
    chosen: np.ndarray,
    draws: np.ndarray,
    alone: np.ndarray,
    begin: np.ndarray,
    second: np.ndarray,
    excess: np.ndarray,
) -> None:
    """Fill int64[texts, words] behind its first column, with a draw in [0, 1) for every word.

    Word w follows v in proportion to (count(v, w) + PRIOR * P(w)) ** (1 / temperature), which is (PRIOR * P(w)) **
    (1 / temperature) for pairs that were never seen. So a draw falls either into the weights of all words alone, or
    into what the seen pairs of v have above that: bisecting both costs far less than a row over the vocabulary.

    Args:
        alone: float64[words], cumulated weights of the words alone.
        begin: int64[words + 1 or more], where the pairs of each first word begin in
        second: int64[pairs], the second words, and
        excess: float64[pairs], their weights above those alone, cumulated for each first word.
    """
    for text in range(chosen.shape[0]):
        for place in range(1, chosen.shape[1]):
            word = chosen[text, place - 1]
            pairs = excess[begin[word] : begin[word + 1]]
            above = pairs[-1] if pairs.size else 0.0
            drawn = draws[text, place] * (alone[-1] + above)
            if drawn < alone[-1] or not pairs.size:  # products may round up to the very end: indices are cut
                chosen[text, place] = min(np.searchsorted(alone, drawn, "right"), alone.size - 1)
            else:
                found = min(np.searchsorted(pairs, drawn - alone[-1], "right"), pairs.size - 1)
                chosen[text, place] = second[begin[word] + found]
