"""The circuit breaker, on a clock of its own."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import EngineUnavailable
from guardrails_qwen.engines.breaker import Breaker


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(3, 5.0, clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.admit()
        breaker.failed()


def refuses(breaker: Breaker) -> bool:
    try:
        breaker.admit()
    except EngineUnavailable:
        return True
    return False


def test_it_opens_at_so_many_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert not breaker.open
    fail(breaker, 1)
    assert breaker.open
    with pytest.raises(EngineUnavailable, match=r"3 times in a row.*in 5\.0 s"):
        breaker.admit()


def test_while_it_is_closed_nothing_is_a_probe(breaker: Breaker) -> None:
    assert [breaker.admit() for _ in range(5)] == [False] * 5


def test_a_success_in_between_starts_the_count_anew(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.admit()
    breaker.succeeded()
    fail(breaker, 2)
    assert not breaker.open


def test_after_a_rest_one_probe_goes_through(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 5.0
    assert breaker.admit()
    with pytest.raises(EngineUnavailable, match="under way"):
        breaker.admit()


def test_a_probe_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 6
    breaker.admit()
    breaker.succeeded()
    assert not breaker.open
    assert not refuses(breaker)
    assert not refuses(breaker)


def test_a_probe_that_fails_opens_it_for_another_rest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 6
    fail(breaker, 1)
    clock.now += 4.9
    assert refuses(breaker)
    clock.now += 0.2
    assert not refuses(breaker)


def test_a_probe_that_was_given_up_lets_the_next_one_through(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, 3)
    clock.now += 6
    breaker.admit()
    breaker.released()
    assert breaker.open
    breaker.admit()
    assert refuses(breaker)


@given(st.lists(st.sampled_from(["admit", "succeeded", "failed", "released", "wait"]), max_size=60))
def test_whatever_happened_it_never_stays_shut(events: list[str]) -> None:
    """After any history, a rest without a request under way lets one through.

    Whoever is not the probe may leave without a word.
    """
    clock = Clock()
    breaker = Breaker(2, 1.0, clock)
    under_way = list[bool]()
    for event in events:
        if event == "wait":
            clock.now += 0.6
        elif event == "admit":
            with suppress(EngineUnavailable):
                under_way.append(breaker.admit())
        elif under_way:
            probing = under_way.pop(0)
            if event != "released" or probing:
                getattr(breaker, event)()
    for probing in under_way:
        if probing:
            breaker.released()
    clock.now += 1.1
    assert not refuses(breaker)


@given(st.integers(1, 20), st.integers(0, 40))
def test_it_is_open_exactly_from_the_limit_on(limit: int, failures: int) -> None:
    breaker = Breaker(limit, 1.0, Clock())
    for _ in range(failures):
        breaker.failed()
    assert breaker.open == (failures >= limit) == refuses(breaker)
