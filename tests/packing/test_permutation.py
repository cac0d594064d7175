import numpy as np
import pytest

from seqmill.packing.permutation import permutation, permute, round_keys


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000, 1 << 15, (1 << 15) + 1])
def test_every_number_comes_exactly_once(count: int) -> None:
    order = permutation(count, round_keys("test", count))
    assert np.array_equal(np.sort(order), np.arange(count))


def test_single_elements_are_those_of_the_whole_permutation() -> None:
    keys = round_keys("test", 1)
    order = permutation(1000, keys)
    assert [permute(index, 1000, keys) for index in range(0, 1000, 37)] == order[::37].tolist()


def test_an_order_of_an_earlier_version_is_kept() -> None:
    """Golden values: a change here changes every packed dataset and every resumed run."""
    assert permutation(10, round_keys("golden", 0)).tolist() == [0, 9, 8, 3, 6, 2, 4, 7, 5, 1]


def test_names_give_unrelated_orders() -> None:
    orders = [permutation(1000, round_keys("epoch", 0, epoch)) for epoch in range(20)]
    for index, one in enumerate(orders):
        for other in orders[:index]:
            assert (one == other).sum() < 12  # 1 is expected; 12 has a probability below 1e-9


def test_positions_are_uniform_over_keys() -> None:
    """Where element 0 of 8 goes, over 4,000 keys: 500 each, give or take 5 standard deviations."""
    seen = np.bincount([permute(0, 8, round_keys("key", key)) for key in range(4000)], minlength=8)
    assert np.all(np.abs(seen - 500) < 5 * np.sqrt(500))


def test_neighbours_part() -> None:
    order = permutation(100_000, round_keys("test"))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02
