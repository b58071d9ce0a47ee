"""RetryPolicy: arithmetic, and how it fits tenacity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryError, Retrying, retry_if_result

from sa_wfstate import RetryPolicy

seconds = st.floats(0, 1000)


@st.composite
def policies(draw: st.DrawFn) -> RetryPolicy:
    """Any policy that is not refused."""
    base_delay, max_delay = sorted((draw(seconds), draw(seconds)))
    max_attempts = draw(st.none() | st.integers(1, 10_000))
    deadline = draw(seconds if max_attempts is None else st.none() | seconds)
    return RetryPolicy(
        max_attempts=max_attempts,
        base_delay=base_delay,
        max_delay=max_delay,
        deadline=deadline,
    )


@given(policies(), st.integers(1, 10**9), seconds, st.floats(0, 1, exclude_max=True))
def test_no_delay_is_longer_than_allowed(
    policy: RetryPolicy, attempt: int, elapsed: float, drawn: float
) -> None:
    """A delay is within 0 and max_delay, and ends before the deadline."""
    delay = policy.next_delay(attempt, elapsed, draw=lambda: drawn)
    if delay is not None:
        assert 0 <= delay <= policy.ceiling(attempt) <= policy.max_delay
        assert policy.max_attempts is None or attempt < policy.max_attempts
        assert policy.deadline is None or elapsed + delay <= policy.deadline


@given(policies(), st.integers(1, 200))
def test_ceiling_never_falls(policy: RetryPolicy, attempt: int) -> None:
    """The longest pause grows with each attempt, up to max_delay."""
    assert policy.ceiling(attempt) <= policy.ceiling(attempt + 1)


def test_default_is_three_attempts_of_10_to_250_ms() -> None:
    """Without arguments: three attempts, the pauses jittered below 10 and 20 ms."""
    policy = RetryPolicy()
    assert policy.next_delay(1, 0, draw=lambda: 0.5) == pytest.approx(0.005)
    assert policy.next_delay(2, 0, draw=lambda: 0.5) == pytest.approx(0.010)
    assert policy.next_delay(3, 0) is None
    assert policy.ceiling(1000) == 0.250


def test_deadline_is_not_waited_past() -> None:
    """An attempt that could only start after the deadline is given up at once."""
    policy = RetryPolicy(max_attempts=None, base_delay=0.1, deadline=1.0)
    assert policy.next_delay(1, 0.95, draw=lambda: 0.4) == pytest.approx(0.04)
    assert policy.next_delay(1, 0.95, draw=lambda: 0.6) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_attempts": 0},
        {"max_attempts": None},
        {"base_delay": -1},
        {"base_delay": 1, "max_delay": 0.5},
        {"max_delay": float("inf")},
        {"base_delay": float("nan")},
        {"deadline": -1},
        {"deadline": float("nan")},
    ],
)
def test_impossible_policy_is_refused(arguments: dict[str, float | None]) -> None:
    """A policy without an end, or with delays that cannot be, is a ValueError."""
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "policy", [RetryPolicy.for_contention(), RetryPolicy.for_lock_wait()]
)
def test_presets_end(policy: RetryPolicy) -> None:
    """The presets set no number of attempts, but a deadline."""
    assert policy.next_delay(10_000, 0) is not None
    assert policy.next_delay(1, 30.1) is None


def test_policy_drives_tenacity() -> None:
    """The methods wait and stop are what tenacity's parameters of these names take."""
    pauses: list[float] = []
    policy = RetryPolicy(max_attempts=4)
    retrying = Retrying(
        stop=policy.stop,
        wait=policy.wait,
        sleep=pauses.append,
        retry=retry_if_result(lambda _: True),
    )
    with pytest.raises(RetryError):
        retrying(lambda: None)
    assert len(pauses) == 3
    assert all(pause <= policy.ceiling(n) for n, pause in enumerate(pauses, 1))
