"""The link against the fake cluster, on virtual time: everything a real agent cannot be told to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import msgpack
import pytest
import trio
import trio.testing

from lab.fake_serf import FakeSerfAgent, FakeSerfCluster
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.core.serf.ipc import RemoteProtocolError
from shovey_trio.core.serf.records import UserEventReceived
from shovey_trio.core.serf.wire import Command, MemberStatus
from shovey_trio.serf.connection import open_connection
from shovey_trio.serf.errors import SerfAuthFailed, SerfConnectionLost, SerfQueueFull, SerfRefused
from shovey_trio.serf.link import ReceivedQuery, SerfLink, SerfSettings
from shovey_trio.serf.membership import ChangeKind
from shovey_trio.serf.queries import MAX_WAITING

# pytest-trio takes the clock from a test's own arguments alone, hence one in each.
_NODES = ("o:ctl", "o:a", "o:b")
_SETTINGS = SerfSettings()


def _query(*targets: str, payload: bytes = b"x", ack: bool = True, lifetime: float = 5) -> PlannedQuery:
    return PlannedQuery(
        name="shovey-trio",
        payload=payload,
        filter_nodes=targets,
        targets=targets,
        request_ack=ack,
        timeout=lifetime,
        size=0,
    )


@asynccontextmanager
async def _linked(
    agent: FakeSerfAgent, settings: SerfSettings = _SETTINGS, *, wait: bool = True
) -> AsyncIterator[SerfLink]:
    """The agent is served and the link runs; both end with the block."""
    settings = replace(settings, open_stream=agent.open_stream)
    link = SerfLink(settings, clock=trio.current_time, jitter=lambda: 1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        await nursery.start(link.run)
        with trio.fail_after(3600):
            if wait:
                await link.wait_connected()
            yield link
        nursery.cancel_scope.cancel(reason="test over")


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


async def _last_error(link: SerfLink) -> str:
    await _until(lambda: link.snapshot().last_error is not None)
    return str(link.snapshot().last_error)


async def test_connected_the_link_knows_members_and_its_own_name(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    cluster.query_queue = 3
    async with _linked(cluster.agent("o:ctl")) as link:
        status = link.snapshot()
        assert (status.connected, status.node_name, status.members, status.alive) == (True, "o:ctl", 3, 3)
        assert (status.query_queue, status.last_error, status.connects) == (3, None, 1)
        assert link.is_alive("o:a")
        assert not link.is_alive("o:x")


async def test_who_does_not_follow_members_is_told_nothing_of_them_but_their_number(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl")
    settings = replace(_SETTINGS, events=("user",), follow_members=False)
    async with _linked(agent, settings) as link:
        assert link.snapshot().members == len(_NODES)
        assert [session.wants("member-failed") for session in agent.sessions] == [False]
        cluster.set_status("o:new", MemberStatus.ALIVE)
        # Past a comparison of the members, if there were one.
        await trio.sleep(2 * settings.reconcile_interval)
        assert link.snapshot().members == len(_NODES) + 1
        assert link.membership.members == {}
        cluster.send_user_event("news", b"1")
        assert isinstance(await link.events.receive(), UserEventReceived)


async def test_an_absent_serf_is_a_state_and_is_tried_again_with_backoff_up_to_five_seconds(
    autojump_clock: object,
) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl")
    agent.absent = True
    tried: list[float] = []
    open_stream = agent.open_stream

    async def counted() -> trio.abc.Stream:
        tried.append(trio.current_time())
        return await open_stream()

    agent.open_stream = counted  # type: ignore[method-assign]  # to see when it is called
    async with _linked(agent, wait=False) as link:
        await trio.sleep(60)
        gaps = [after - before for before, after in pairwise(tried)]
        assert gaps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2] + [5.0] * (len(gaps) - 6))
        assert len(gaps) > 10
        status = link.snapshot()
        assert not status.connected
        assert status.last_error is not None
        assert "absent" in status.last_error
        agent.absent = False
        assert await link.wait_connected() == 1


async def test_after_a_reconnect_the_difference_is_told(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl")
    async with _linked(agent) as link:
        with link.membership.feed() as feed:
            agent.absent = True
            agent.drop()
            await _until(lambda: not link.snapshot().connected)
            assert not link.is_alive("o:a")
            assert link.membership.is_alive("o:a")  # the last view stays
            cluster.set_status("o:a", MemberStatus.FAILED)
            cluster.set_status("o:c", MemberStatus.ALIVE)
            cluster.reap("o:b")
            agent.absent = False
            assert await link.wait_connected(after=1) == 2
            changes = {change.member.name: change.kind for change in await feed.next_batch()}
        assert changes == {"o:a": ChangeKind.FAILED, "o:c": ChangeKind.JOINED, "o:b": ChangeKind.REAPED}


class _Racing(trio.abc.Stream):
    """Runs ``race`` when the answer to ``members`` has arrived and before it is read."""

    def __init__(self, inner: trio.abc.Stream, race: Callable[[], None]) -> None:
        self._inner = inner
        self._race: Callable[[], None] | None = race

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._inner.receive_some(max_bytes))
        if self._race is not None and b"Members" in data:
            self._race()
            self._race = None
            # What the agent streamed before it answered comes first on the wire.
            data = bytes(await self._inner.receive_some(max_bytes)) + data
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_member_events_that_race_with_the_first_members_are_not_lost(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl")
    open_stream = agent.open_stream

    async def racing() -> trio.abc.Stream:
        return _Racing(await open_stream(), lambda: cluster.set_status("o:a", MemberStatus.FAILED))

    agent.open_stream = racing  # type: ignore[method-assign]  # to stand between the two
    async with _linked(agent) as link:
        with trio.fail_after(60):
            await link.membership.wait_until(lambda view: not view.is_alive("o:a"))
        assert link.is_alive("o:b")


async def test_a_stalled_agent_is_found_by_stats_within_fifteen_seconds_and_left(autojump_clock: object) -> None:
    agent = FakeSerfCluster(*_NODES).agent("o:ctl")
    async with _linked(agent) as link:
        agent.stalled = True
        start = trio.current_time()
        with pytest.raises(SerfConnectionLost):
            await link.ring(_query("o:a"))
        assert trio.current_time() - start <= 15.01
        status = link.snapshot()
        assert not status.connected
        await _until(lambda: link.snapshot().last_error is not None)
        assert "SERF_STALLED" in str(link.snapshot().last_error)
        agent.stalled = False
        await link.wait_connected(after=1)


async def test_an_agent_that_stalls_while_we_connect_is_given_up(autojump_clock: object) -> None:
    agent = FakeSerfCluster(*_NODES).agent("o:ctl")
    agent.stalled = True
    async with _linked(agent, wait=False) as link:
        await trio.sleep(12)
        assert "SERF_STALLED" in str(link.snapshot().last_error)
        agent.stalled = False
        await link.wait_connected()


@pytest.mark.parametrize(
    "garbage", [b"\xc1", b"HTTP/1.1 200 OK\r\n", msgpack.packb({"Seq": 4711, "Error": ""}), b"\x00" * 9]
)
async def test_garbage_fails_all_that_wait_with_one_typed_error(garbage: bytes, autojump_clock: object) -> None:
    agent = FakeSerfCluster(*_NODES).agent("o:ctl")
    agent_stream, errors = await agent_pair(agent), list[Exception]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, agent_stream[1])
        async with open_connection(agent_stream[0]) as connection:
            agent.stalled = True

            async def ask(command: Callable[[], Awaitable[object]]) -> None:
                try:
                    await command()
                except RemoteProtocolError as exc:
                    errors.append(exc)

            async with trio.open_nursery() as askers:
                for command in (connection.members, connection.stats, connection.members):
                    askers.start_soon(ask, command)
                await trio.testing.wait_all_tasks_blocked()
                (session,) = agent.sessions
                await session._stream.send_all(garbage)
            assert len(errors) == 3
            assert len({id(error) for error in errors}) == 1
            with pytest.raises(RemoteProtocolError):
                await connection.stats()
        nursery.cancel_scope.cancel(reason="test over")


async def agent_pair(agent: FakeSerfAgent) -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Both ends of a connection that ``agent.serve`` has still to be given."""
    await trio.lowlevel.checkpoint()
    assert not agent.sessions
    return trio.testing.memory_stream_pair()


async def test_garbage_ends_the_connection_and_the_link_comes_back(autojump_clock: object) -> None:
    agent = FakeSerfCluster(*_NODES).agent("o:ctl")
    async with _linked(agent) as link:
        agent.send_garbage(b"\xc1\xc1")
        await link.wait_connected(after=1)
        assert "SERF_PROTOCOL" in str(link.snapshot().last_error)
        assert link.is_alive("o:a")


async def test_the_wrong_key_is_named_and_the_right_one_works(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl", auth_key="s3cret")
    for key in (None, "wrong"):
        async with _linked(agent, SerfSettings(auth_key=key), wait=False) as link:
            await _last_error(link)
            assert "SERF_AUTH_FAILED" in str(link.snapshot().last_error)
            assert "wrong" not in str(link.snapshot().last_error)
    async with _linked(agent, SerfSettings(auth_key="s3cret")) as link:
        assert link.snapshot().connected
    assert "s3cret" not in repr(SerfSettings(auth_key="s3cret"))


async def test_junk_records_of_nobody_and_repeated_records_count_for_nothing(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    cluster.junk_records = 321
    cluster.silent = {"o:b"}
    async with _linked(cluster.agent("o:ctl")) as link:
        progress = await link.ring(_query("o:a", "o:b"))
        await progress.wait_settled()
        assert progress.acked == {"o:a"}
        assert progress.unheard == {"o:a", "o:b"}  # an ack is not an answer
        assert progress.answers == {}
        assert link.snapshot().queries_outstanding == 0


async def test_a_query_is_answered_through_the_agent_and_settles_when_all_are_heard(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    settings = SerfSettings(events=("query:shovey-trio",))
    async with (
        _linked(cluster.agent("o:ctl")) as controller,
        _linked(cluster.agent("o:a"), settings) as node,
        _linked(cluster.agent("o:b"), settings) as other,
    ):
        progress = await controller.ring(_query("o:a", payload=b"\x00bell\xff"))
        event = await node.events.receive()
        assert isinstance(event, ReceivedQuery)
        assert (event.name, event.payload) == ("shovey-trio", b"\x00bell\xff")
        assert not progress.settled
        await event.respond(b"here")
        with pytest.raises(SerfRefused, match="already sent"):
            await event.respond(b"again")
        before = trio.current_time()
        await progress.wait_settled()
        assert trio.current_time() - before < 1  # not at the query's deadline
        assert progress.answers == {"o:a": b"here"}
        with pytest.raises(trio.WouldBlock):
            other.events.receive_nowait()


async def test_an_answer_on_a_connection_that_is_gone_is_refused(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:a")
    async with _linked(agent, SerfSettings(events=("query", "user"))) as node:
        cluster.send_query("shovey-trio", b"1")
        cluster.send_user_event("hello", b"2")
        query, event = await node.events.receive(), await node.events.receive()
        assert isinstance(query, ReceivedQuery)
        assert isinstance(event, UserEventReceived)
        agent.drop()
        await node.wait_connected(after=1)
        with pytest.raises(SerfConnectionLost):
            await query.respond(b"late")


async def test_when_our_own_reader_is_too_slow_the_connection_fails_and_nothing_is_dropped_silently(
    autojump_clock: object,
) -> None:
    cluster = FakeSerfCluster(*_NODES)
    async with _linked(cluster.agent("o:a"), SerfSettings(events=("user",), event_buffer=5)) as node:
        for number in range(6):
            cluster.send_user_event("e", bytes([number]))
        await node.wait_connected(after=1)
        assert "SERF_CONSUMER_TOO_SLOW" in str(node.snapshot().last_error)
        kept = [node.events.receive_nowait() for _ in range(5)]
        assert [event.payload for event in kept] == [bytes([n]) for n in range(5)]
        cluster.send_user_event("e", b"after")
        assert (await node.events.receive()).payload == b"after"


async def test_queries_go_ten_at_once_and_then_one_a_second_in_order(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    async with _linked(cluster.agent("o:ctl")) as link, trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            progress = await link.ring(_query("o:a", payload=bytes([number])))
            progress.mark_heard("o:a")

        for number in range(15):
            nursery.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
        await _until(lambda: len(cluster.queries) == 15)
        start = cluster.queries[0].at
        assert [query.payload[0] for query in cluster.queries] == list(range(15))
        assert [q.at - start for q in cluster.queries] == pytest.approx([0] * 10 + [1, 2, 3, 4, 5], abs=0.05)


async def test_the_eleventh_outstanding_query_waits_for_targets_to_be_heard_not_for_serfs_deadline(
    autojump_clock: object,
) -> None:
    cluster = FakeSerfCluster(*_NODES)
    async with _linked(cluster.agent("o:ctl")) as link, trio.open_nursery() as nursery:
        first = [await link.ring(_query("o:a", "o:b", lifetime=16)) for _ in range(10)]
        assert link.snapshot().queries_outstanding == 10
        sent = trio.Event()

        async def eleventh() -> None:
            await link.ring(_query("o:a"))
            sent.set()

        nursery.start_soon(eleventh)
        await trio.sleep(5)
        assert not sent.is_set()
        assert link.snapshot().queries_waiting == 1
        first[3].mark_heard("o:a")
        await trio.sleep(1)
        assert not sent.is_set()
        before = trio.current_time()
        first[3].mark_heard("o:b")
        await sent.wait()
        assert trio.current_time() - before < 1


async def test_a_long_query_queue_of_the_agent_stops_and_slows_us(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    cluster.query_queue = 300
    async with _linked(cluster.agent("o:ctl")) as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.ring, _query("o:a"))
        await trio.sleep(60)
        assert cluster.queries == []
        cluster.query_queue = 100
        await _until(lambda: len(cluster.queries) == 1)
        assert link.snapshot().query_queue == 100


async def test_while_serf_is_away_queries_wait_and_go_when_it_is_back(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl")
    agent.absent = True
    async with _linked(agent, wait=False) as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.ring, _query("o:a"))
        await trio.sleep(100)
        assert link.snapshot().queries_waiting == 1
        agent.absent = False
        await _until(lambda: len(cluster.queries) == 1)


async def test_too_many_waiting_queries_are_refused_with_a_hint(autojump_clock: object) -> None:
    agent = FakeSerfCluster(*_NODES).agent("o:ctl")
    agent.absent = True
    async with _linked(agent, wait=False) as link, trio.open_nursery() as nursery:
        for _ in range(MAX_WAITING):
            nursery.start_soon(link.ring, _query("o:a"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(SerfQueueFull) as caught:
            await link.ring(_query("o:a"))
        assert int(caught.value.details["retry_after_s"]) > 0
        nursery.cancel_scope.cancel(reason="enough")
        await trio.lowlevel.checkpoint_if_cancelled()


async def test_a_lost_connection_fails_the_query_and_frees_its_place(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl")
    async with _linked(agent) as link:
        progress = await link.ring(_query("o:a"))
        agent.drop()
        await progress.wait_settled()
        assert progress.unheard == {"o:a"}
        await link.wait_connected(after=1)
        assert link.snapshot().queries_outstanding == 0


async def test_a_refused_query_says_why_and_frees_its_place(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    async with _linked(cluster.agent("o:ctl")) as link:
        with pytest.raises(SerfRefused, match="exceeds limit of 1024 bytes"):
            await link.ring(_query("o:a", payload=bytes(1000)))
        assert link.snapshot().queries_outstanding == 0


@pytest.mark.parametrize("step", range(12))
async def test_cancelling_a_caller_at_any_step_leaves_the_connection_and_the_count_right(
    step: int, autojump_clock: object
) -> None:
    cluster = FakeSerfCluster(*_NODES)
    async with _linked(cluster.agent("o:ctl")) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.ring, _query("o:a"))
            for _ in range(step):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel(reason="caller gave up")
        progress = await link.ring(_query("o:b"))
        assert progress.unheard == {"o:b"}
        await trio.sleep(6)
        status = link.snapshot()
        assert (status.connects, status.queries_outstanding, status.queries_waiting) == (1, 0, 0)


async def test_every_five_minutes_the_members_are_compared(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    async with _linked(cluster.agent("o:ctl")) as link:
        cluster.members.pop("o:a")  # and no stream tells
        await trio.sleep(290)
        assert link.is_alive("o:a")
        await trio.sleep(20)
        assert not link.is_alive("o:a")


async def test_an_announcement_waits_for_the_connection_and_one_too_large_is_refused(autojump_clock: object) -> None:
    cluster = FakeSerfCluster(*_NODES)
    agent = cluster.agent("o:ctl")
    agent.absent = True
    async with _linked(agent, wait=False) as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.announce, "shovey-trio-controller", b"o:ctl")
        await trio.sleep(10)
        agent.absent = False
        await _until(lambda: cluster.user_events == [("shovey-trio-controller", b"o:ctl")])
        with pytest.raises(SerfRefused):
            await link.announce("x", bytes(600))


async def test_errors_of_the_body_leave_a_connection_as_they_are(autojump_clock: object) -> None:
    agent = FakeSerfCluster(*_NODES).agent("o:ctl", auth_key="k")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        with pytest.raises(ValueError, match="mine"):
            async with open_connection(await agent.open_stream(), auth_key="k"):
                raise ValueError("mine")
        with pytest.raises(SerfAuthFailed):
            async with open_connection(await agent.open_stream()) as connection:
                await connection.command(Command.EVENT, {"Name": "x", "Payload": b"", "Coalesce": False})
        nursery.cancel_scope.cancel(reason="test over")
