"""Simulated requests: a text decides how many tokens of a chain of n would be accepted."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.models.inference.drafting import Draft, Throttle
from seqmill.models.inference.drafting.throttle import best_length, expected_accepted

COSTS = (0.002, 0.02, 0.1, 0.4)


@dataclass
class Ledger:
    passes: int = 0
    proposed: int = 0
    accepted: int = 0

    def speed(self, token_cost: float) -> float:
        """Beside plain decoding, which makes a pass for every token."""
        return (self.passes + self.accepted) / (self.passes + token_cost * self.proposed)


def runs(chance: float, seed: int) -> Iterator[int]:
    """How many tokens of an endless chain are accepted, where each is with this chance."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.geometric(1 - chance)) - 1 if chance < 1 else 10**6


def simulate(throttle: Throttle, acceptable: Iterator[int], token_cost: float, passes: int) -> Ledger:
    request, ledger = throttle.open(), Ledger()
    for _ in range(passes):
        draft = Draft.chain(range(request.limit(token_cost)))
        accepted = min(len(draft), next(acceptable))
        request.record(draft, accepted, token_cost)
        ledger.passes += 1
        ledger.proposed += len(draft)
        ledger.accepted += accepted
    return ledger


def fixed(length: int, acceptable: Iterator[int], passes: int) -> Ledger:
    accepted = sum(min(length, next(acceptable)) for _ in range(passes))
    return Ledger(passes, passes * length, accepted)


@pytest.mark.parametrize("token_cost", COSTS)
def test_where_nothing_is_accepted_proposals_cost_less_than_three_hundredths(token_cost):
    ledger = simulate(Throttle(), runs(0, 0), token_cost, 200)
    assert token_cost * ledger.proposed < 0.03 * ledger.passes
    assert ledger.proposed > 0  # it does try


@pytest.mark.parametrize("token_cost", COSTS)
@pytest.mark.parametrize("chance", [0.3, 0.6, 0.9, 0.97, 1.0])
def test_speed_is_near_that_of_the_best_fixed_length(chance, token_cost):
    found = simulate(Throttle(), runs(chance, 1), token_cost, 1000).speed(token_cost)
    lengths = range(0, 33)
    best = max(fixed(length, runs(chance, 1), 1000).speed(token_cost) for length in lengths)
    assert found > 0.95 * best


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=200),
    st.sampled_from(COSTS),
    st.integers(0, 40),
    st.floats(0, 0.1),
    st.floats(0, 2),
)
def test_whatever_the_text_no_more_is_spent_than_was_gained_and_allowed(text, token_cost, most, waste, burst):
    throttle = Throttle(most=most, waste=waste, burst=burst)
    for _ in range(2):  # the second request begins with what was learned from the first
        ledger = simulate(throttle, iter(text), token_cost, len(text))
        spent = token_cost * ledger.proposed
        assert spent <= ledger.accepted + waste * ledger.passes + burst + 1e-9


def test_gains_are_lost_again_up_to_the_reserve_alone():
    throttle, token_cost = Throttle(), 0.1
    request = throttle.open()
    for _ in range(200):
        draft = Draft.chain(range(request.limit(token_cost)))
        request.record(draft, len(draft), token_cost)
    lost, passes = 0.0, 300
    for _ in range(passes):
        draft = Draft.chain(range(request.limit(token_cost)))
        request.record(draft, 0, token_cost)
        lost += token_cost * len(draft)
    assert lost <= throttle.reserve + throttle.waste * passes


def test_a_text_that_turns_into_copying_is_found_again():
    throttle = Throttle()
    ledger = simulate(throttle, iter([0] * 300 + [40] * 300), 0.02, 600)
    assert ledger.accepted > 300 * 20 * 0.6


def test_requests_begin_with_what_others_learned():
    throttle = Throttle()
    assert throttle.open().limit(0.1) > 1
    for _ in range(10):
        simulate(throttle, runs(0, 2), 0.1, 100)
    assert throttle.open().limit(0.1) == 0


def test_a_pass_without_a_draft_says_nothing_of_acceptance():
    request = Throttle().open()
    before = request.acceptance
    for _ in range(50):
        request.record(Draft.chain([]), 0, 0.1)
    assert request.acceptance == before


@given(st.floats(0, 1), st.sampled_from(COSTS), st.integers(0, 32))
def test_the_best_length_is_the_one_with_the_most_tokens_per_cost(chance, token_cost, most):
    best = best_length(chance, 1.0, token_cost, most)
    rates = [(1 + sum(chance**i for i in range(1, n + 1))) / (1 + n * token_cost) for n in range(most + 1)]
    assert rates[best] == pytest.approx(max(rates))


def test_a_request_that_overdrew_its_account_proposes_nothing():
    request = Throttle().open()
    request.record(Draft.chain(range(30)), 0, 0.1)  # an engine that proposed more than it was told
    assert request.limit(0.1) == 0


def test_levels_below_one_count_as_one():
    assert expected_accepted(0.5, 0.2) == expected_accepted(0.5, 1) == 0.5
    assert expected_accepted(0.5, 0) == 0


def test_free_tokens_are_proposed_to_the_most():
    assert Throttle(most=17).open().limit(0.0) == 17
    assert Throttle(most=0).open().limit(0.0) == 0


@pytest.mark.parametrize(
    "setting", [{"most": -1}, {"waste": -0.1}, {"burst": 9.0}, {"memory": 1.0}, {"longest_pause": 0}]
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        Throttle(**setting)
