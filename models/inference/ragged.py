"""Sequences of token ids end to end, and which of them share a forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of any lengths without a gap between them: [[5, 6], [7]] is ids 5 6 7 and offsets 0 2 3."""

    ids: Int64s  # int64[tokens]
    offsets: Int64s  # int64[sequences + 1]: where each sequence begins, and the end of the last

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]] | Sequence[np.ndarray]) -> "Ragged":
        """These sequences, in this order."""
        parts = [np.asarray(sequence, np.int64) for sequence in sequences]
        return cls.from_lengths(np.concatenate([np.empty(0, np.int64), *parts]), np.array(list(map(len, parts))))

    @classmethod
    def from_lengths(cls, ids: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> "Ragged":
        """The sequences of these lengths that lie end to end in `ids`."""
        return cls(ids.astype(np.int64, copy=False), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64s:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def outside(self, vocab_size: int) -> tuple[int, int] | None:
        """The first id that a model of so many ids does not know, as (number of its sequence, id); None without one."""
        wrong = (self.ids < 0) | (self.ids >= vocab_size)
        if not wrong.any():
            return None
        place = int(wrong.argmax())
        return int(np.searchsorted(self.offsets, place, "right")) - 1, int(self.ids[place])

    def require_readable(self, vocab_size: int) -> None:
        """Refuse what a model of so many ids cannot read.

        Raises:
            UserError: a sequence is empty or holds an id outside the vocabulary.
        """
        if not self.lengths.all():
            raise UserError(
                f"sequence {int(self.lengths.argmin())} is empty, and there is nothing to go on from; give it at least "
                "one token"
            )
        if found := self.outside(vocab_size):
            raise UserError(
                f"sequence {found[0]} holds the id {found[1]}, but the model's vocabulary is 0 .. {vocab_size - 1}; "
                "encode it with the tokenizer that the model was trained with"
            )

    def batches(self, most_tokens: int) -> Iterator[slice]:
        """Neighbouring sequences of at most `most_tokens` together, or one longer sequence; all of them, in order.

        With lengths 3, 2, 9, 1 and at most 5: sequences 0 and 1, then 2 alone, then 3.
        """
        first = 0
        while first < len(self):
            reach = np.searchsorted(self.offsets, self.offsets[first] + most_tokens, "right") - 1
            last = max(first + 1, int(reach))
            yield slice(first, last)
            first = last

    def part(self, chosen: slice) -> "Ragged":
        """These sequences alone."""
        bounds = self.offsets[chosen.start : chosen.stop + 1]
        return Ragged(self.ids[bounds[0] : bounds[-1]], bounds - bounds[0])

    def split(self, values: np.ndarray, fewer: int) -> list[np.ndarray]:
        """Views of `values`, which has as many for each sequence as that has tokens, less `fewer`."""
        ends = np.cumsum(self.lengths - fewer)
        return [values[begin:end] for begin, end in pairwise([0, *ends.tolist()])]
