"""A run's mailbox: in order, bounded, taken at once; nothing is lost between a writer and a close."""

from __future__ import annotations

import trio
import trio.testing

from shovey_trio.nursery.mailbox import Mailbox


async def test_what_waits_is_taken_at_once_in_order() -> None:
    box = Mailbox[int](4)
    for number in range(3):
        assert await box.put(number)
    assert await box.take_all() == [0, 1, 2]
    assert box.is_empty


async def test_the_reader_waits_for_the_first_item() -> None:
    box = Mailbox[int](4)
    taken: list[int] = []

    async def read() -> None:
        taken.extend(await box.take_all())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        await box.put(7)
    assert taken == [7]


async def test_a_reader_that_waits_until_a_time_gets_nothing_then(autojump_clock: trio.testing.MockClock) -> None:
    box = Mailbox[int](4)
    assert await box.take_all(trio.current_time() + 5) == []
    assert trio.current_time() == 5


async def test_what_lingers_is_taken_with_what_follows_it(autojump_clock: trio.testing.MockClock) -> None:
    box = Mailbox[int](4)

    async def write() -> None:
        assert await box.put(1, linger=5)
        await trio.sleep(2)
        assert await box.put(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        assert await box.take_all() == [1, 2]
    assert trio.current_time() == 2


async def test_what_lingers_is_taken_in_the_end_though_nothing_follows(autojump_clock: trio.testing.MockClock) -> None:
    box = Mailbox[int](4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: box.put(1, linger=5))
        assert await box.take_all(trio.current_time() + 60) == [1]
        assert trio.current_time() == 5
        nursery.start_soon(lambda: box.put(2, linger=60))
        assert await box.take_all(trio.current_time() + 5) == [2]
        assert trio.current_time() == 10


async def test_a_full_mailbox_lingers_no_longer(autojump_clock: trio.testing.MockClock) -> None:
    box = Mailbox[int](2)

    async def write() -> None:
        for number in range(2):
            assert await box.put(number, linger=60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        assert await box.take_all() == [0, 1]
    assert trio.current_time() == 0


async def test_a_writer_waits_for_room_and_keeps_its_order() -> None:
    box = Mailbox[int](2)

    async def write() -> None:
        for number in range(5):
            assert await box.put(number)

    taken: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        while len(taken) < 5:
            found = await box.take_all()
            assert len(found) <= 2
            taken += found
            await trio.testing.wait_all_tasks_blocked()
    assert taken == [0, 1, 2, 3, 4]


async def test_a_cancelled_writer_has_handed_over_nothing() -> None:
    box = Mailbox[int](1)
    await box.put(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.put, 2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="test")
    assert await box.take_all() == [1]
    assert box.is_empty


async def test_a_cancelled_reader_has_taken_nothing() -> None:
    box = Mailbox[int](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.take_all)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="test")
        box.put_nowait(1)
    assert await box.take_all() == [1]


async def test_closing_returns_what_nobody_took_and_refuses_those_who_wait() -> None:
    box = Mailbox[int](1)
    await box.put(1)
    refused: list[bool] = []

    async def write() -> None:
        refused.append(await box.put(2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert box.close() == [1]
    assert refused == [False]
    assert not await box.put(3)
    assert box.is_closed
