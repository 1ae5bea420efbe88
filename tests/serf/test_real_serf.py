"""The link against real serf agents: what the fake claims to be like."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.serf.doorbell import Doorbell, DoorbellKind, is_for, organization_hash, short_key_id, verify
from shovey_trio.core.serf.doorbell_plan import PlannedQuery, plan_doorbells
from shovey_trio.core.serf.records import UserEventReceived
from shovey_trio.core.serf.size import QueryFrame
from shovey_trio.core.serf.wire import AGENT_START_EVENT, STREAM_DOORBELLS, STREAM_USER_EVENTS, MemberStatus
from shovey_trio.demo.serf_agents import SerfAgentProcess, open_serf_agents
from shovey_trio.serf.errors import SerfRefused
from shovey_trio.serf.link import ReceivedQuery, SerfLink, SerfSettings
from shovey_trio.serf.progress import QueryProgress

pytestmark = pytest.mark.serf

_NOW = 1_800_000_000
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
_KEYS = {short_key_id(_KEY.public_key()): _KEY.public_key()}
_LISTENING = (STREAM_DOORBELLS, STREAM_USER_EVENTS)


@asynccontextmanager
async def _links(
    agents: Sequence[SerfAgentProcess], *, events: tuple[str, ...] = _LISTENING, **settings: float
) -> AsyncIterator[list[SerfLink]]:
    """A connected link to each agent."""
    links = [
        SerfLink(
            SerfSettings(open_stream=agent.open_stream, auth_key=agent.auth_key, events=events, **settings)  # type: ignore[arg-type]  # durations only
        )
        for agent in agents
    ]
    async with trio.open_nursery() as nursery:
        for link in links:
            await nursery.start(link.run)
            await link.wait_connected()
        yield links
        nursery.cancel_scope.cancel(reason="test over")


def _query(payload: bytes, *targets: str, lifetime: float = 3, ack: bool = True) -> PlannedQuery:
    return PlannedQuery(
        name="shovey-trio",
        payload=payload,
        filter_nodes=targets,
        targets=targets,
        request_ack=ack,
        timeout=lifetime,
        size=0,
    )


async def _settle_until(progress: QueryProgress, condition: Callable[[], bool]) -> None:
    while not condition() and not progress.settled:
        await progress.wait_changed()


async def _next_query(link: SerfLink) -> ReceivedQuery:
    while True:
        event = await link.events.receive()
        if isinstance(event, ReceivedQuery):
            return event


async def test_queries_are_acked_and_answered_and_the_junk_at_the_deadline_counts_for_nothing(tmp_path: Path) -> None:
    names = ["org:ctl", "org:a", "org:b"]
    with trio.fail_after(30):
        async with open_serf_agents(names, directory=tmp_path) as agents, _links(agents) as (ctl, a, b):
            progress = await ctl.ring(_query(b"\x00hi\xff", "org:a", "org:b"))
            question = await _next_query(a)
            assert (question.name, question.payload) == ("shovey-trio", b"\x00hi\xff")
            await question.respond(b"here")
            with pytest.raises(SerfRefused, match="already sent"):
                await question.respond(b"again")
            await _settle_until(progress, lambda: bool(progress.answers) and len(progress.acked) == 2)
            assert progress.answers == {"org:a": b"here"}
            assert progress.acked == {"org:a", "org:b"}
            assert not progress.settled

            assert (await _next_query(b)).payload == b"\x00hi\xff"
            await progress.wait_settled()
            assert progress.unheard == {"org:b"}
            assert progress.acked == {"org:a", "org:b"}
            assert progress.answers == {"org:a": b"here"}
            assert ctl.snapshot().queries_outstanding == 0


async def test_a_doorbell_wakes_exactly_the_listed_nodes_and_by_filter_the_targets_know_themselves(
    tmp_path: Path,
) -> None:
    names = ["org:ctl", "org:a", "org:b", "org:c"]
    bell = Doorbell(
        kind=DoorbellKind.START,
        key_id=short_key_id(_KEY.public_key()),
        organization=organization_hash("org"),
        job_id=str(uuid.UUID(int=1)),
        spread_ms=0,
        issued_at=_NOW,
        expires_at=_NOW + 60,
        epoch=1,
    )

    def believe(query: ReceivedQuery) -> Doorbell:
        return verify(query.payload, keys=_KEYS, organization="org", now=_NOW, skew=1)

    with trio.fail_after(30):
        async with open_serf_agents(names, directory=tmp_path) as agents, _links(agents) as (ctl, a, b, c):
            (listed,) = plan_doorbells(bell, ["org:a", "org:b"], signer=_KEY, source_node="org:ctl", members=4)
            assert listed.filter_nodes == ("org:a", "org:b")
            progress = await ctl.ring(listed)
            for link in (a, b):
                assert believe(await _next_query(link)).job_id == bell.job_id
            progress.mark_heard("org:a", "org:b")

            many = ["org:a", *(f"org:{number:028}" for number in range(99))]
            (filtered,) = plan_doorbells(bell, many, signer=_KEY, source_node="org:ctl", members=4)
            assert filtered.filter_nodes == ()
            await ctl.ring(filtered)
            # The first doorbell would have reached the third node before this one.
            received = {name: await _next_query(link) for name, link in (("org:a", a), ("org:b", b), ("org:c", c))}
            assert all(query.payload == filtered.payload for query in received.values())
            assert [is_for(believe(query), name) for name, query in received.items()] == [True, False, False]


async def test_a_real_agent_takes_1024_bytes_by_our_formula_and_refuses_1025(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with open_serf_agents(["org:ctl"], directory=tmp_path) as (agent,), agent.connect() as connection:
            for nodes in ((), ("org:a",), tuple(f"org:{n:024}" for n in range(20))):
                for excess in (0, 1):
                    ltime = int((await connection.stats())["serf"]["query_time"])
                    frame = QueryFrame(source_node="org:ctl", query_name="shovey-trio", timeout=5, ltime=ltime)
                    payload = max(size for size in range(1024) if frame.size(size, nodes) <= 1024) + excess
                    assert frame.size(payload, nodes) == 1024 + excess
                    query = _query(bytes(payload), *nodes, lifetime=5, ack=False)
                    progress = QueryProgress((), on_settled=lambda: None)
                    if excess:
                        with pytest.raises(SerfRefused, match="exceeds limit of 1024 bytes"):
                            await connection.query(query, progress)
                    else:
                        await connection.query(query, progress)


async def test_a_killed_agent_is_lost_at_once_and_found_again_after_its_restart(tmp_path: Path) -> None:
    names = ["org:ctl", "org:a"]
    with trio.fail_after(60):
        async with open_serf_agents(names, directory=tmp_path) as agents, _links(agents[:1]) as (ctl,):
            await agents[0].kill()
            while ctl.snapshot().connected:
                await trio.sleep(0.01)
            assert not ctl.is_alive("org:a")
            await agents[0].start(join=[agents[1].gossip_port])
            assert await ctl.wait_connected(after=1) >= 2
            # Restarted this quickly, serf tells nobody; only the comparison at the reconnect shows who is there.
            await ctl.membership.wait_until(lambda view: view.is_alive("org:a") and view.is_alive("org:ctl"))
            progress = await ctl.ring(_query(b"x", "org:a", lifetime=5))
            await _settle_until(progress, lambda: bool(progress.acked))
            assert progress.acked == {"org:a"}


async def test_an_encrypted_ring_and_a_key_on_the_rpc_port_work_and_a_wrong_key_is_named(tmp_path: Path) -> None:
    names = ["org:ctl", "org:a"]
    with trio.fail_after(30):
        async with open_serf_agents(
            names, directory=tmp_path, auth_key="s3cret", encrypt_key=bytes(range(32))
        ) as agents:
            async with agents[0].connect() as connection:
                assert (await connection.stats())["serf"]["encrypted"] == "true"
            async with _links(agents) as (ctl, a):
                await ctl.ring(_query(b"sealed", "org:a"))
                assert (await _next_query(a)).payload == b"sealed"
            async with trio.open_nursery() as nursery:
                for key in (None, "wrong"):
                    link = SerfLink(SerfSettings(open_stream=agents[0].open_stream, auth_key=key))
                    await nursery.start(link.run)
                    while link.snapshot().last_error is None:
                        await trio.sleep(0.01)
                    assert "SERF_AUTH_FAILED" in str(link.snapshot().last_error)
                nursery.cancel_scope.cancel(reason="test over")


@pytest.mark.slow
async def test_joining_failing_and_leaving_are_seen(tmp_path: Path) -> None:
    names = ["org:ctl", "org:a", "org:b"]
    with trio.fail_after(90):
        async with open_serf_agents(names, directory=tmp_path) as agents, _links(agents[:1]) as (ctl,):
            late = SerfAgentProcess("org:late", directory=tmp_path, number=99)
            try:
                await late.start(join=[agents[0].gossip_port])
                await ctl.membership.wait_until(lambda view: view.is_alive("org:late"))
                await agents[1].kill()
                await agents[2].leave()
                await ctl.membership.wait_until(
                    lambda view: (
                        view.members["org:a"].status is MemberStatus.FAILED
                        and view.members["org:b"].status is MemberStatus.LEFT
                    )
                )
                assert ctl.snapshot().alive == 2
            finally:
                with trio.CancelScope(deadline=trio.current_time() + 10, shield=True):
                    await late.kill()


async def test_a_stopped_agent_is_given_up_and_taken_back(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_serf_agents(["org:ctl"], directory=tmp_path) as (agent,),
            _links([agent], liveness_interval=0.2, liveness_deadline=2.0, setup_deadline=2.0) as (link,),
        ):
            agent.stall()
            while "SERF_STALLED" not in str(link.snapshot().last_error):
                await trio.sleep(0.01)
            assert not link.snapshot().connected
            agent.resume()
            await link.wait_connected(after=1)


async def test_a_start_is_announced_to_all_who_listen(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with open_serf_agents(["org:ctl", "org:a"], directory=tmp_path) as agents, _links(agents) as (ctl, a):
            await a.announce(AGENT_START_EVENT, b"org:a")
            while True:
                event = await ctl.events.receive()
                if isinstance(event, UserEventReceived):
                    break
            assert (event.name, event.payload) == (AGENT_START_EVENT, b"org:a")


async def test_a_burst_of_queries_on_one_connection_loses_no_ack(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_serf_agents(["org:ctl", "org:a"], directory=tmp_path) as agents, _links(agents[:1]) as (ctl,):
            acked: list[str] = []

            async def ask(number: int) -> None:
                progress = await ctl.ring(_query(bytes([number]), "org:a", lifetime=20))
                await _settle_until(progress, lambda: bool(progress.acked))
                acked.extend(progress.acked)
                progress.mark_heard("org:a")

            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(ask, number)
            assert acked == ["org:a"] * 12


async def test_no_agent_is_left_when_the_block_is_cancelled(tmp_path: Path) -> None:
    pids: list[int] = []
    with trio.fail_after(30):
        with trio.CancelScope() as scope:
            async with open_serf_agents(["org:a", "org:b"], directory=tmp_path) as agents:
                pids = [agent.pid for agent in agents if agent.pid is not None]
                scope.cancel(reason="as Ctrl-C does")
                await trio.sleep_forever()
    assert len(pids) == 2
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
