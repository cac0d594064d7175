"""Which bucket each step of a pass reads: drawn for the whole pass before it begins (arXiv 2405.13226, Algorithm 1).

Every step has room for the same number of tokens b, and reads b / 2^k rows of the bucket of length 2^k: so the learning
rate need not follow the length, and all ranks of a step do the same work. The steps of every bucket are dealt to
`cycles` parts, and within a cycle a bucket is drawn by its odds among those whose part is not used up. When a cycle
ends, all its parts are; when the pass ends, all rows are read, each once.

    3 buckets, odds 4 : 2 : 1, 2 cycles      256 256 512 256 1024 512 1024 | 256 512 256 ...

A step is a number. Its bucket and its place in the bucket are stored, 9 bytes a step, so that any step is found in
constant time, by any number of ranks; nothing is kept between steps.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from seqmill.errors import UserError
from seqmill.packing.buckets import Buckets
from seqmill.packing.cache import read_table
from seqmill.packing.permutation import keyed_number, round_keys
from seqmill.storage import fingerprint, read_metadata, with_metadata, write_arrow

CURRICULA: Final = ("uniform", "grow-linear", "grow-p2", "natural")
SCHEDULE: Final = "schedule.arrow"  # in a packed folder with buckets

Int64s = npt.NDArray[np.int64]
_SCHEMA = pa.schema([pa.field("bucket", pa.int8(), nullable=False), pa.field("step_of_bucket", pa.int64(), False)])


@dataclass(frozen=True)
class ScheduleSettings:
    """All that a schedule depends on."""

    shortest: int  # tokens of a row in bucket 0, a power of two; bucket i has rows of shortest * 2^i
    rows: tuple[int, ...]  # of every bucket
    step_tokens: int  # room of every step: b
    curriculum: str  # one of CURRICULA
    cycles: int
    seed: int

    @property
    def longest(self) -> int:
        """Tokens of a row in the last bucket."""
        return self.shortest << (len(self.rows) - 1)


class Positions(NamedTuple):
    """Rows `begin` to `end` of an order that shuffles the rows `first` to `last` among themselves."""

    first: int
    last: int
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class BucketSchedule:
    """The bucket of every step of one pass over the rows."""

    settings: ScheduleSettings
    bucket: npt.NDArray[np.int8]  # int8[steps], the exponent k of the bucket's length 2^k
    step_of_bucket: Int64s  # int64[steps], how many earlier steps read the same bucket

    @property
    def steps(self) -> int:
        """Steps of a pass."""
        return len(self.bucket)

    @property
    def fingerprint(self) -> str:
        """Equal for equal schedules."""
        return fingerprint(asdict(self.settings))

    @property
    def short_steps(self) -> int:
        """Steps with fewer rows than the others of their bucket: at most one per bucket, its last."""
        settings = self.settings
        return sum(
            rows % (settings.step_tokens // (settings.shortest << i)) > 0 for i, rows in enumerate(settings.rows)
        )

    def positions(self, step: int) -> Positions:
        """The rows that all ranks together read in a step, 0 <= step < steps."""
        settings = self.settings
        number = int(self.bucket[step]) - (settings.shortest.bit_length() - 1)
        rows = settings.step_tokens >> int(self.bucket[step])
        first = sum(settings.rows[:number])
        last = first + settings.rows[number]
        begin = first + rows * int(self.step_of_bucket[step])
        return Positions(first, last, begin, min(begin + rows, last))

    def check_ranks(self, ranks: int) -> None:
        """Whether every full step can be divided into equal parts.

        Raises:
            UserError: it cannot: some ranks would wait for others in every step.
        """
        rows = self.settings.step_tokens // self.settings.longest
        if rows % ranks:
            raise UserError(
                f"a step of {self.settings.step_tokens} tokens has {rows} rows of {self.settings.longest}, which "
                f"{ranks} ranks cannot share evenly; make a schedule whose step is a multiple of "
                f"{ranks * self.settings.longest} tokens, or choose a number of ranks that divides {rows}"
            )


def make_schedule(
    buckets: Buckets, step_tokens: int, curriculum: str = "grow-p2", cycles: int = 8, seed: int = 0
) -> BucketSchedule:
    """Draw the bucket of every step.

    Args:
        buckets: of a plan, or of a packed folder: `Buckets.of(manifest["pack"]["buckets"])`.
        step_tokens: room of every step, a multiple of the longest row; the last step of a bucket may be short.
        curriculum: the odds of m buckets, from the shortest to the longest: "uniform" 1 : ... : 1, "grow-linear"
            m : ... : 2 : 1, "grow-p2" 2^(m-1) : ... : 2 : 1 (the paper's, section 3.3), or "natural": the steps that
            are left of the bucket's part, so that all orders of a cycle's steps are equally likely.
        cycles: parts of each bucket's steps.
        seed: of the draws.

    Raises:
        UserError: an argument is out of its range.
    """
    settings = ScheduleSettings(buckets.shortest, buckets.rows, step_tokens, curriculum, cycles, seed)
    check_settings(settings.longest, step_tokens, curriculum, cycles)
    steps = -(-np.array(settings.rows, np.int64) // (step_tokens // buckets.lengths))
    dealt = steps * np.arange(cycles + 1)[:, None] // cycles  # [cycles + 1, buckets], steps before each cycle
    odds = np.array([_odds(curriculum, len(steps) - number) for number in range(len(steps))], np.int64)
    drawn, step_of_bucket = _draw(np.diff(dealt, axis=0), odds, curriculum == "natural", round_keys("schedule", seed))
    return BucketSchedule(settings, drawn + np.int8(buckets.shortest.bit_length() - 1), step_of_bucket)


def check_settings(longest: int, step_tokens: int, curriculum: str, cycles: int) -> None:
    """Refuse what no schedule can have.

    Raises:
        UserError: naming it.
    """
    if step_tokens < 1 or step_tokens % longest:
        near = max(1, round(step_tokens / longest)) * longest
        raise UserError(
            f"steps of {step_tokens} tokens are no whole number of rows of {longest}, the longest bucket: "
            f"{step_tokens / longest:.4g} of them; choose a multiple, such as {near}"
        )
    if curriculum not in CURRICULA:
        raise UserError(f"unknown curriculum {curriculum!r}; choose one of {', '.join(CURRICULA)}")
    if cycles < 1:
        raise UserError(f"a curriculum of {cycles} cycles reads nothing; choose 1 or more")


def save_schedule(path: Path, schedule: BucketSchedule) -> None:
    """Write a schedule as an Arrow stream: a row per step, the settings in its metadata."""
    schema = with_metadata(_SCHEMA, "schedule", **asdict(schedule.settings))
    columns = [pa.array(schedule.bucket), pa.array(schedule.step_of_bucket)]
    write_arrow(path, schema, [pa.record_batch(columns, schema=schema)])


def load_schedule(path: str | Path) -> BucketSchedule:
    """Read a schedule that `save_schedule` wrote; its arrays are read-only.

    Args:
        path: of the file, or a URL that fsspec can open.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    table = read_table(path)
    metadata = read_metadata(table.schema)
    if metadata.get("kind") != "schedule" or table.column(0).num_chunks != 1:
        found = metadata.get("kind", "something else")
        raise UserError(f"{path} holds {found}, but a bucket schedule is needed; pack again")
    bucket, step_of_bucket = (table.column(n).chunk(0).to_numpy(zero_copy_only=True) for n in (0, 1))
    entries: dict[str, Any] = {name: metadata[name] for name in ScheduleSettings.__dataclass_fields__}
    return BucketSchedule(ScheduleSettings(**{**entries, "rows": tuple(entries["rows"])}), bucket, step_of_bucket)


def _odds(curriculum: str, rank: int) -> int:
    """The odds of the bucket that is `rank`-th from the longest, which is 1; those of "natural" are not fixed."""
    return {"uniform": 1, "grow-linear": rank, "grow-p2": 1 << (rank - 1), "natural": 0}[curriculum]


@njit(cache=True, nogil=True)
def _draw(
    parts: Int64s, odds: Int64s, by_steps_left: bool, keys: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int8], Int64s]:
    """Algorithm 1 for `parts` int64[cycles, buckets] of steps: the number of the bucket, and its steps before."""
    bucket, step_of_bucket = np.empty(parts.sum(), np.int8), np.empty(parts.sum(), np.int64)
    used = np.zeros(odds.size, np.int64)
    step = 0
    for cycle in range(parts.shape[0]):
        left = parts[cycle].copy()
        while left.any():
            weights = left if by_steps_left else np.where(left > 0, odds, 0)
            point = keyed_number(step, cycle, keys) % weights.sum()
            drawn = 0
            while point >= weights[drawn]:
                point -= weights[drawn]
                drawn += 1
            bucket[step], step_of_bucket[step] = drawn, used[drawn]
            left[drawn] -= 1
            used[drawn] += 1
            step += 1
    return bucket, step_of_bucket
