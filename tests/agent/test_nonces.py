"""The nonces: an order is admitted once, and forgetting it does not bring it back."""

from __future__ import annotations

import errno
import math
import os
import resource
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shovey_agent.desk.nonces import NonceLedger, NonceVerdict, open_nonces, parse_nonces, written
from shovey_trio.core.trust.orders import make_nonce

FRESH, REPLAYED = NonceVerdict.FRESH, NonceVerdict.REPLAYED
NOW = 1_000_000.0
LIFE = 900.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nonces"


async def test_nonce_is_admitted_once_also_after_a_restart(path: Path) -> None:
    nonces = await open_nonces(path)
    assert await nonces.admit(b"a", expires_at=NOW + 60, now=NOW) is FRESH
    assert await nonces.admit(b"a", expires_at=NOW + 60, now=NOW) is REPLAYED
    again = await open_nonces(path)
    assert await again.admit(b"a", expires_at=NOW + 60, now=NOW) is REPLAYED
    assert await again.admit(b"b", expires_at=NOW + 60, now=NOW) is FRESH


async def test_thousand_deliveries_at_once_admit_one(path: Path) -> None:
    nonces = await open_nonces(path)
    verdicts: list[NonceVerdict] = []

    async def deliver() -> None:
        verdicts.extend([await nonces.admit(b"a", expires_at=NOW + 60, now=NOW) for _ in range(100)])

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(deliver)
    assert verdicts.count(FRESH) == 1
    assert verdicts.count(REPLAYED) == 999


async def test_forgotten_order_is_refused_even_with_the_clock_set_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_at_once(monkeypatch)
    nonces = await open_nonces(path)
    await nonces.admit(b"a", expires_at=NOW + 60, now=NOW)
    await nonces.admit(b"later", expires_at=NOW + 3600, now=NOW + 61)
    assert not nonces.holds(b"a")
    # The clock is an hour behind, and the order looks as good as new.
    for opened in (nonces, await open_nonces(path)):
        assert await opened.admit(b"a", expires_at=NOW + 60, now=NOW - 3600) is NonceVerdict.BELOW_FLOOR
        assert await opened.admit(b"b", expires_at=NOW + 60, now=NOW - 3600) is NonceVerdict.BELOW_FLOOR
    assert await nonces.admit(b"c", expires_at=NOW + 60.5, now=NOW - 3600) is FRESH


def nonce_of(frame: int, number: int) -> bytes:
    return make_nonce(epoch=7, frame=frame, random_bytes=lambda size: number.to_bytes(size, "big"))


def forget_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shovey_agent.desk.nonces._PRUNE_AT", 1)


@pytest.mark.parametrize("ahead", [3600.0, 86_400.0, 31 * 86_400.0])
async def test_what_was_forgotten_by_a_clock_that_was_ahead_does_not_bind_the_corrected_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    forget_at_once(monkeypatch)
    wrong, old = NOW + ahead, nonce_of(1, 1)
    nonces = await open_nonces(path)
    assert await nonces.admit(old, expires_at=wrong + 60, now=wrong) is FRESH
    assert await nonces.admit(nonce_of(1, 2), expires_at=wrong + 160, now=wrong + 100) is FRESH
    assert not nonces.holds(old)
    for opened in (nonces, await open_nonces(path)):
        assert await opened.admit(nonce_of(2, 1), expires_at=NOW + 60, now=NOW) in (FRESH, REPLAYED)
        # Whoever has recorded the old order can neither use it now, nor when its time comes.
        assert await opened.admit(old, expires_at=wrong + 60, now=NOW) is NonceVerdict.BELOW_FLOOR
        assert await opened.admit(old, expires_at=wrong + 60, now=wrong) is NonceVerdict.BELOW_FLOOR


async def test_nodes_own_clock_makes_it_forget_nothing(path: Path) -> None:
    nonces = await open_nonces(path)
    await nonces.admit(b"a", expires_at=1.0, now=0.0)
    assert (await open_nonces(path)).holds(b"a"), "by this machine's clock it has expired long ago"


async def test_void_runs_can_be_voided_again_whatever_was_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_at_once(monkeypatch)
    voided = await open_nonces(path, keeps_floor=False)
    assert await voided.admit(b"run", expires_at=NOW + 86_400, now=NOW + 86_000) is FRESH
    assert await voided.admit(b"other", expires_at=NOW + 90_000, now=NOW + 89_000) is FRESH
    assert await voided.admit(b"new", expires_at=NOW + 3600, now=NOW) is FRESH


async def test_order_that_would_have_to_be_remembered_for_ever_is_refused(path: Path) -> None:
    nonces = await open_nonces(path, longest_life=LIFE)
    assert await nonces.admit(b"a", expires_at=NOW + LIFE + 1, now=NOW) is NonceVerdict.TOO_FAR_AHEAD
    assert await nonces.admit(b"a", expires_at=math.inf, now=NOW) is NonceVerdict.TOO_FAR_AHEAD
    assert await nonces.admit(b"a", expires_at=math.nan, now=NOW) is NonceVerdict.BELOW_FLOOR


async def test_file_stays_bounded_by_what_is_still_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shovey_agent.desk.nonces._PRUNE_AT", 64)
    nonces = await open_nonces(path)
    with trio.fail_after(60):
        for number in range(200):
            # Each is valid for ten others.
            at = NOW + number
            assert await nonces.admit(b"%d" % number, expires_at=at + 10, now=at) is FRESH
    assert len(path.read_bytes().splitlines()) < 70


async def test_what_is_still_valid_survives_every_rewriting_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shovey_agent.desk.nonces._PRUNE_AT", 16)
    nonces = await open_nonces(path)
    await nonces.admit(b"long", expires_at=NOW + 10_000, now=NOW)
    for number in range(16):
        await nonces.admit(b"%d" % number, expires_at=NOW + 1 + number % 2, now=NOW + 1)
    # Of the 16 that made it be written anew, those are left that have a second to live; one came after them.
    kept = {b"long", *(b"%d" % number for number in range(1, 16, 2))}
    for _ in range(3):
        assert set(parse_nonces(path.read_bytes())[0].used) == kept
        again = await open_nonces(path)
        assert await again.admit(b"long", expires_at=NOW + 10_000, now=NOW + 2) is REPLAYED
        assert await again.admit(b"0", expires_at=NOW + 1, now=NOW) is NonceVerdict.BELOW_FLOOR


async def test_order_is_not_admitted_when_its_nonce_cannot_be_kept(path: Path) -> None:
    nonces = await open_nonces(path)
    await nonces.admit(b"before", expires_at=NOW + 60, now=NOW)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            await nonces.admit(b"a", expires_at=NOW + 60, now=NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == size
    assert await nonces.admit(b"b", expires_at=NOW + 60, now=NOW) is FRESH
    again = await open_nonces(path)
    assert await again.admit(b"b", expires_at=NOW + 60, now=NOW) is REPLAYED


async def test_unfinished_last_line_is_an_order_that_never_ran(path: Path) -> None:
    nonces = await open_nonces(path)
    await nonces.admit(b"a", expires_at=NOW + 60, now=NOW)
    with path.open("ab") as file:
        file.write(b"1000060.0 6")
    again = await open_nonces(path)
    assert await again.admit(b"a", expires_at=NOW + 60, now=NOW) is REPLAYED
    assert await again.admit(b"b", expires_at=NOW + 60, now=NOW) is FRESH


async def test_agent_comes_up_when_the_file_cannot_be_written_anew_and_loses_no_whole_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonces = await open_nonces(path)
    await nonces.admit(b"a", expires_at=NOW + 60, now=NOW)
    whole = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as disk:
        disk.setattr("shovey_agent.desk.nonces.write_file", full)
        for rest in (b"", b"1000060.0 6", b"1000060.0 63\n1000060.0 6"):
            path.write_bytes(whole + rest)
            again = await open_nonces(path)
            assert again.holds(b"a")
            assert path.read_bytes() == whole + rest[: rest.rfind(b"\n") + 1]
        with pytest.raises(OSError, match="full"):
            await open_nonces(path.with_name("not there yet"))
    assert await again.admit(b"b", expires_at=NOW + 60, now=NOW) is FRESH
    assert (await open_nonces(path)).holds(b"b")


async def test_damaged_file_refuses_whatever_it_may_have_admitted(path: Path) -> None:
    nonces = await open_nonces(path, longest_life=LIFE)
    await nonces.admit(b"a", expires_at=NOW + LIFE, now=NOW)
    path.write_bytes(os.urandom(100) + b"\n")
    os.utime(path, (NOW, NOW))
    again = await open_nonces(path, longest_life=LIFE)
    assert await again.admit(b"a", expires_at=NOW + LIFE, now=NOW) is NonceVerdict.BELOW_FLOOR
    assert await again.admit(b"b", expires_at=NOW + LIFE + 1, now=NOW + 1) is FRESH


@given(st.binary(max_size=300))
def test_any_file_is_read(text: bytes) -> None:
    ledger, _ = parse_nonces(text)
    assert isinstance(ledger, NonceLedger)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["admit", "prune", "reopen"]), st.integers(0, 9), st.floats(0, 100), st.floats(0, 100)
        ),
        max_size=60,
    ),
    st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=10, max_size=10),
    st.integers(1, 4),
)
def test_no_history_of_clocks_and_prunings_admits_a_nonce_twice(
    history: list[tuple[str, int, float, float]], frames: list[int | None], kept: int
) -> None:
    ledger = NonceLedger()
    # A nonce belongs to one order and to one frame, and an order has one expiry.
    expiries: dict[int, float] = {}
    admitted: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shovey_agent.desk.nonces._FRAMES", kept)
        for action, number, expires_at, now in history:
            if action == "prune":
                ledger.prune(now)
                continue
            if action == "reopen":
                ledger, damaged = parse_nonces(b"".join(written(ledger)))
                assert not damaged
                continue
            frame = frames[number]
            nonce = bytes([number]) * 16 if frame is None else nonce_of(frame, number)
            expiry = expiries.setdefault(number, expires_at)
            if ledger.judge(nonce, expires_at=expiry, now=now, longest_life=1000.0) is FRESH:
                ledger.used[nonce] = expiry
                admitted.append(number)
    assert len(admitted) == len(set(admitted))
    assert len(ledger.floors) <= max(kept, 5)
