"""Failures use up an allowance that grows back; nobody else's, and in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shovey_trio.core.trust.attempt_limits import NAMES_PER_ADDRESS, REMEMBERED, AttemptLimits, host_of

NOW = 1_800_000_000.0
HERE = "192.0.2.7"


def failed(limits: AttemptLimits, times: int, *, address: str = HERE, name: str = "web-1", now: float = NOW) -> None:
    for _ in range(times):
        limits.failed(address, name, now)


def test_name_that_failed_too_often_waits_and_is_heard_again() -> None:
    limits = AttemptLimits(6)
    failed(limits, 5)
    assert limits.wait(HERE, "web-1", NOW) == 0
    failed(limits, 1)
    assert limits.wait(HERE, "web-1", NOW) == 10
    assert limits.wait(HERE, "web-1", NOW + 10) == 0
    failed(limits, 1, now=NOW + 10)
    assert limits.wait(HERE, "web-1", NOW + 10) == 10


def test_name_at_the_same_address_is_not_held_up_by_another() -> None:
    limits = AttemptLimits(6)
    failed(limits, 50)
    assert limits.wait(HERE, "web-2", NOW) == 0


def test_new_name_for_every_attempt_is_of_no_use() -> None:
    limits = AttemptLimits(6)
    for number in range(6 * NAMES_PER_ADDRESS):
        assert limits.wait(HERE, f"name-{number}", NOW) == 0
        failed(limits, 1, name=f"name-{number}")
    assert limits.wait(HERE, "yet-another", NOW) > 0
    assert limits.wait("192.0.2.8", "yet-another", NOW) == 0


def test_clock_that_is_set_back_locks_nobody_out_for_good() -> None:
    limits = AttemptLimits(6)
    failed(limits, 6)
    assert limits.wait(HERE, "web-1", NOW - 3600) == 10
    assert limits.wait(HERE, "web-1", NOW - 3590) == 0


@settings(deadline=None)
@given(st.integers(0, 40))
def test_memory_is_bounded_whatever_comes(extra: int) -> None:
    limits = AttemptLimits(6)
    for number in range(REMEMBERED // 2 + extra):
        limits.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "n", NOW)
    assert len(limits._left) <= REMEMBERED


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::"),
        ("2001:db8:0:0:ffff::9", "2001:db8::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::"),
        ("?", "?"),
    ],
)
def test_one_host_is_one_address(address: str, host: str) -> None:
    assert host_of(address) == host
