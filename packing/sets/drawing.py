"""Which instances of a bag are drawn into main rows: the same ones for the same seed, epoch and bag."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from seqmill.errors import UserError
from seqmill.packing.pack_plan import MAX_CAPACITY
from seqmill.packing.permutation import keyed_number, permute, round_keys

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SetSettings:
    """How bags become packs."""

    capacity: int = 2048  # instances that a row has room for
    keep: float = 0.5  # share of a bag's instances that is drawn into a main row
    at_least: int = 0  # instances that are drawn wherever a bag has them, so that smaller bags stay whole (paper: 512)
    at_most: int | None = None  # instances that are drawn of one bag; None: as many as a row has room for
    seed: int = 0  # of the draw, and of the order of rows
    epoch: int = 0  # another one draws anew

    def __post_init__(self) -> None:
        most = self.capacity if self.at_most is None else self.at_most
        if not 1 <= self.capacity <= MAX_CAPACITY:
            raise UserError(f"sets.capacity = {self.capacity} is outside 1 to {MAX_CAPACITY}; choose one inside")
        if not 0 < self.keep <= 1:
            raise UserError(f"sets.keep = {self.keep}: a share above 0 and up to 1 of each bag is drawn")
        if not 1 <= most <= self.capacity:
            raise UserError(f"sets.at_most = {most}: a main row of {self.capacity} holds 1 to {self.capacity} of a bag")
        if not 0 <= self.at_least <= most:
            raise UserError(
                f"sets.at_least = {self.at_least}: a bag has at most {most} instances in a main row; lower "
                "it, or raise the capacity"
            )
        if self.epoch < 0:
            raise UserError(f"sets.epoch = {self.epoch}: epochs count from 0")

    @property
    def most(self) -> int:
        """Instances that are drawn of one bag at most."""
        return self.capacity if self.at_most is None else self.at_most


def drawn_counts(counts: Int64s, settings: SetSettings) -> Int64s:
    """How many instances of every bag are drawn, int64[bags]: at least one of a bag that has any."""
    share = np.floor(counts * settings.keep).astype(np.int64)
    wanted = np.clip(share, max(1, settings.at_least), settings.most)
    return np.minimum(counts, wanted)


def draw(bags: Int64s, counts: Int64s, drawn: Int64s, settings: SetSettings) -> npt.NDArray[np.int32]:
    """The instances of these bags, int32[sum(counts)]: of each bag the drawn ones, then the others, both rising.

    Args:
        bags: their numbers in the store, which the draw depends on.
        counts, drawn: instances of each, and how many of them are drawn.
    """
    out = np.empty(int(counts.sum()), np.int32)
    _draw(bags, counts, drawn, round_keys("sets", settings.seed, settings.epoch), out)
    return out


@njit(cache=True, nogil=True)
def _draw(
    bags: Int64s, counts: Int64s, drawn: Int64s, keys: npt.NDArray[np.uint64], out: npt.NDArray[np.int32]
) -> None:
    """A keyed permutation of each bag's instances; those that it sends to the first places are drawn."""
    place = 0
    own = np.empty(4, np.uint64)
    for index in range(bags.size):
        for number in range(4):
            own[number] = np.uint64(keyed_number(bags[index], number, keys))
        head, tail = place, place + drawn[index]
        for instance in range(counts[index]):
            if permute(instance, counts[index], own) < drawn[index]:
                out[head] = instance
                head += 1
            else:
                out[tail] = instance
                tail += 1
        place += counts[index]
