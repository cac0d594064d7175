from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing import Buckets, BucketSchedule, load_schedule, make_schedule, save_schedule
from seqmill.packing.curriculum import CURRICULA
from seqmill.storage import write_arrow


def buckets_of(shortest: int, *rows: int) -> Buckets:
    return Buckets(shortest, "longest", "drop", rows, 0, 0)


def share_of(schedule: BucketSchedule, steps: slice) -> list[float]:
    """How often each bucket is read in these steps."""
    settings = schedule.settings
    number = schedule.bucket[steps] - (settings.shortest.bit_length() - 1)
    return (np.bincount(number, minlength=len(settings.rows)) / len(number)).tolist()


@st.composite
def instances(draw: st.DrawFn) -> dict[str, Any]:
    low, count = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    rows = draw(st.lists(st.integers(0, 300), min_size=count, max_size=count))
    return {
        "buckets": buckets_of(2**low, *rows),
        "step_tokens": 2 ** (low + count - 1) * draw(st.integers(1, 5)),
        "curriculum": draw(st.sampled_from(CURRICULA)),
        "cycles": draw(st.integers(1, 9)),
        "seed": draw(st.integers(0, 5)),
    }


@settings(max_examples=60, deadline=None)
@given(instances())
def test_a_pass_reads_every_row_once_in_steps_of_the_same_room(instance: dict[str, Any]) -> None:
    schedule = make_schedule(**instance)
    buckets, step_tokens = instance["buckets"], instance["step_tokens"]
    seen: list[int] = []
    short = 0
    for step in range(schedule.steps):
        at = schedule.positions(step)
        number = int(buckets.bucket_of(np.array([at.begin]))[0])
        assert 2 ** int(schedule.bucket[step]) == buckets.lengths[number]
        assert (at.first, at.last) == (buckets.bounds[number], buckets.bounds[number + 1])
        room = (at.end - at.begin) * int(buckets.lengths[number])
        assert 0 < room <= step_tokens
        if room < step_tokens:
            assert at.end == at.last
            short += 1
        seen += range(at.begin, at.end)
    assert sorted(seen) == list(range(sum(buckets.rows)))
    assert short == schedule.short_steps <= len(buckets.rows)


@settings(max_examples=60, deadline=None)
@given(instances())
def test_the_place_of_a_step_is_the_number_of_earlier_steps_of_its_bucket(instance: dict[str, Any]) -> None:
    schedule = make_schedule(**instance)
    assert schedule.bucket.dtype == np.int8
    counted: dict[int, int] = {}
    for bucket, place in zip(schedule.bucket.tolist(), schedule.step_of_bucket.tolist(), strict=True):
        assert place == counted.setdefault(bucket, 0)
        counted[bucket] += 1


@settings(max_examples=60, deadline=None)
@given(instances())
def test_each_cycle_uses_up_its_part_of_every_bucket(instance: dict[str, Any]) -> None:
    """Parts of equal steps to within one; the drawn steps between two ends of cycles are exactly these."""
    schedule, cycles = make_schedule(**instance), instance["cycles"]
    per_step = instance["step_tokens"] // instance["buckets"].lengths
    steps = [-(-rows // int(each)) for rows, each in zip(instance["buckets"].rows, per_step, strict=True)]
    first = int(instance["buckets"].lengths[0]).bit_length() - 1
    place = 0
    for cycle in range(cycles):
        part = [n * (cycle + 1) // cycles - n * cycle // cycles for n in steps]
        here = schedule.bucket[place : place + sum(part)] - first
        assert np.bincount(here, minlength=len(steps)).tolist() == part
        assert all(n // cycles <= p <= n // cycles + 1 for n, p in zip(steps, part, strict=True))
        place += sum(part)
    assert place == schedule.steps == sum(steps)


@pytest.mark.parametrize(
    ("curriculum", "odds"),
    [("uniform", [1, 1, 1, 1]), ("grow-linear", [4, 3, 2, 1]), ("grow-p2", [8, 4, 2, 1]), ("natural", [1, 1, 1, 1])],
)
def test_buckets_are_drawn_by_their_odds_while_all_last(curriculum: str, odds: list[int]) -> None:
    """Equal steps in all buckets, as in the paper; looked at while none is used up."""
    steps = 40_000
    schedule = make_schedule(buckets_of(8, 8 * steps, 4 * steps, 2 * steps, steps), 64, curriculum, cycles=1)
    found = share_of(schedule, slice(0, 20_000))
    assert found == pytest.approx([odd / sum(odds) for odd in odds], abs=0.015)


def test_grown_curricula_end_with_the_longest_rows_in_every_cycle() -> None:
    schedule = make_schedule(buckets_of(8, 8000, 4000, 2000, 1000), 64, "grow-p2", cycles=4)
    assert schedule.steps == 4000
    for cycle in range(4):
        assert share_of(schedule, slice(1000 * cycle, 1000 * cycle + 100))[3] < 0.2
        assert share_of(schedule, slice(1000 * cycle + 900, 1000 * cycle + 1000))[3] > 0.8


def test_natural_draws_by_the_steps_that_are_left() -> None:
    """A bucket of nine times the steps is read nine times as often from beginning to end."""
    schedule = make_schedule(buckets_of(8, 90_000, 5_000), 16, "natural", cycles=1)
    for begin in range(0, 50_000, 10_000):
        assert share_of(schedule, slice(begin, begin + 10_000)) == pytest.approx([0.9, 0.1], abs=0.015)


def test_neighbouring_draws_do_not_depend_on_each_other() -> None:
    schedule = make_schedule(buckets_of(8, 80_000, 40_000), 16, "uniform", cycles=1)
    number = schedule.bucket[:20_000].astype(np.float64)
    assert abs(np.corrcoef(number[:-1], number[1:])[0, 1]) < 0.03


def test_the_same_arguments_give_the_same_schedule_and_other_seeds_others() -> None:
    def of(seed: int) -> BucketSchedule:
        return make_schedule(buckets_of(8, 800, 400), 16, seed=seed)

    assert np.array_equal(of(1).bucket, of(1).bucket)
    assert of(1).fingerprint == of(1).fingerprint != of(2).fingerprint
    assert not np.array_equal(of(1).bucket, of(2).bucket)


def test_a_schedule_of_an_earlier_version_is_kept() -> None:
    """Golden values: a change here changes the order of every training run with buckets."""
    schedule = make_schedule(buckets_of(4, 20, 10, 5), 16, "grow-p2", cycles=2, seed=1)
    assert "".join(map(str, schedule.bucket.tolist())) == "232443322234344"


def test_no_rows_give_no_steps() -> None:
    schedule = make_schedule(buckets_of(4, 0, 0), 16)
    assert (schedule.steps, schedule.short_steps) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_tokens": 100}, "steps of 100 tokens are no whole number of rows of 16.*6.25 of them.*such as 96"),
        ({"step_tokens": 8}, "steps of 8 tokens.*such as 16"),
        ({"step_tokens": 0}, "steps of 0 tokens"),
        ({"curriculum": "shrink"}, "curriculum 'shrink'; choose one of uniform, grow-linear, grow-p2, natural"),
        ({"cycles": 0}, "a curriculum of 0 cycles"),
    ],
)
def test_impossible_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"buckets": buckets_of(4, 5, 5, 5), "step_tokens": 32}
    with pytest.raises(UserError, match=message):
        make_schedule(**{**arguments, **change})


def test_ranks_that_cannot_share_a_step_evenly_are_refused() -> None:
    schedule = make_schedule(buckets_of(4, 5, 5, 5), 16 * 6)
    for ranks in (1, 2, 3, 6):
        schedule.check_ranks(ranks)
    with pytest.raises(UserError, match=r"has 6 rows of 16, which 4 ranks cannot share evenly; .* multiple of 64 tok"):
        schedule.check_ranks(4)


def test_a_saved_schedule_is_read_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "schedule.arrow"
    schedule = make_schedule(buckets_of(4, 200, 100, 5), 32, "natural", 3, 9)
    save_schedule(path, schedule)
    loaded = load_schedule(path)
    assert asdict(loaded.settings) == asdict(schedule.settings)
    assert loaded.fingerprint == schedule.fingerprint
    assert loaded.bucket.dtype == np.int8
    assert np.array_equal(loaded.bucket, schedule.bucket)
    assert np.array_equal(loaded.step_of_bucket, schedule.step_of_bucket)


def test_an_empty_schedule_can_be_saved(tmp_path: Path) -> None:
    save_schedule(tmp_path / "schedule.arrow", make_schedule(buckets_of(4, 0, 0), 16))
    assert load_schedule(tmp_path / "schedule.arrow").steps == 0


def test_another_file_is_no_schedule(tmp_path: Path) -> None:
    write_arrow(tmp_path / "x.arrow", pa.schema([("bucket", pa.int8())]), [])
    with pytest.raises(UserError, match="holds something else, but a bucket schedule is needed"):
        load_schedule(tmp_path / "x.arrow")
