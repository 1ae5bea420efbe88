"""Serf beside the system: doorbells of every kind, and serf agents that are absent, killed and started again."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.limits import within
from shovey_agent.credentials import CredentialStore
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_trio.core.serf.doorbell import (
    Audience,
    Doorbell,
    DoorbellKind,
    Signer,
    encode,
    organization_hash,
    short_key_id,
)
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.core.serf.records import QueryReceived, UserEventReceived
from shovey_trio.core.serf.wire import (
    AGENT_START_EVENT,
    CONTROLLER_START_EVENT,
    DOORBELL_QUERY,
    STREAM_DOORBELLS,
    STREAM_USER_EVENTS,
)
from shovey_trio.core.trust.key_sets import PublicKey
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import ORGANIZATION, Fleet, FleetNode, NodeSpec, open_fleet, run_program
from shovey_trio.demo.operator import Operator, open_operator
from shovey_trio.demo.serf_agents import SerfAgentProcess
from shovey_trio.identity.root_keys import KeyRing
from shovey_trio.identity.signing_keys import SigningKeyFile
from shovey_trio.serf.progress import QueryProgress

pytestmark = [pytest.mark.serf, pytest.mark.slow]

LONG = [f"rack-{number}-of-a-data-center-with-a-rather-long-name.example" for number in range(1, 5)]


def _node(directory: Path, name: str, *, link: str = "on-demand", linger: str = "0.2s") -> NodeSpec:
    settings = {"reconnect.linger": linger, "reconnect.delay_max": "1s"}
    return NodeSpec(name=name, link=link, whitelist=commands(str(directory)), settings=settings)


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        return [
            _node(directory, "attached", link="attached"),
            _node(directory, "a"),
            _node(directory, "b", linger="300s"),
            *(_node(directory, name) for name in LONG),
        ]

    with keep_fleet(nodes, serf=True) as fleet:
        yield fleet


@within(40)
async def test_few_targets_are_rung_by_name_and_nobody_else_hears_it(fleet: Fleet, operator: Operator) -> None:
    await _gone(operator, "a")
    async with _ring_heard(fleet, "a") as near, _ring_heard(fleet, LONG[0]) as far:
        assert (await operator.run("true", "a")).states() == {"a": "succeeded"}
        await near(1)
        with trio.move_on_after(0.5) as nothing:
            await far(1)
        assert nothing.cancelled_caught


@within(40)
async def test_targets_whose_names_do_not_fit_are_rung_by_one_filter(fleet: Fleet, operator: Operator) -> None:
    await _gone(operator, *LONG)
    async with _ring_heard(fleet, "attached") as heard:
        assert (await operator.run("true", *LONG)).states() == dict.fromkeys(LONG, "succeeded")
        # No name filter: those who are not meant hear it too, and the filter tells them.
        await heard(1)
    assert (
        "attached" not in (await operator.client.get_node("a")).status.reason
        or not (await operator.client.get_node("a")).attached
    )


@within(40)
async def test_a_woken_agent_for_which_nothing_waits_leaves_at_once(fleet: Fleet, operator: Operator) -> None:
    # b would linger for five minutes.
    await _gone(operator, "b")
    before = len(fleet.nodes["b"].agent.log.read_text())
    await _ring(fleet, SigningKeyFile(fleet.data.signing_keys(ORGANIZATION)).load(ORGANIZATION).active.private_key)
    await _logged(fleet.nodes["b"], "controller.attached", after=before)
    await _logged(fleet.nodes["b"], "controller.detached", after=before)


@within(40)
async def test_a_forged_doorbell_wakes_nobody(fleet: Fleet, operator: Operator) -> None:
    await _gone(operator, "a")
    before = fleet.nodes["a"].agent.log.read_text()
    real = SigningKeyFile(fleet.data.signing_keys(ORGANIZATION)).load(ORGANIZATION).active.private_key
    job_id = await _ring(fleet, Ed25519PrivateKey.generate(), named=real)
    await _logged(fleet.nodes["a"], "doorbell.refused", after=len(before))
    assert job_id not in fleet.nodes["a"].agent.log.read_text()


@within(120)
async def test_no_job_fails_while_keys_are_rotated(fleet: Fleet, operator: Operator) -> None:
    """A hundred jobs on an attached agent, and doorbells all the while for one that knows the old keys alone."""
    ended: list[str] = []
    left = iter(range(100))

    async def work() -> None:
        for _ in left:
            ended.extend((await operator.run("true", "attached")).states().values())

    async def ring() -> None:
        for _ in range(3):
            await _gone(operator, "a")
            ended.extend((await operator.run("true", "a")).states().values())

    async def rotate() -> None:
        for at in (20, 50, 80):
            while len(ended) < at:
                await trio.sleep(0.02)
            await run_program("shovey-trio", "key", "rotate", "--data-dir", str(fleet.data.root))

    before = KeyRing(fleet.data, ORGANIZATION).load().keys.serial
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work)
        nursery.start_soon(ring)
        nursery.start_soon(rotate)
    assert ended == ["succeeded"] * 103
    await _knows(fleet, "attached", KeyRing(fleet.data, ORGANIZATION).load().keys.serial)
    # Rung by a key that it knows, it is told of the others when it calls.
    await _knows(fleet, "a", before + 1)


@within(60)
async def test_a_stolen_key_is_worth_nothing_once_it_is_revoked(fleet: Fleet, operator: Operator) -> None:
    stolen = KeyRing(fleet.data, ORGANIZATION).load().active
    away = fleet.nodes["b"]
    # Whoever calls is told of the keys in force before it gets an order.
    assert (await operator.run("true", "b")).states() == {"b": "succeeded"}
    await away.agent.stop()
    await run_program("shovey-trio", "key", "revoke", stolen.key_id, "--data-dir", str(fleet.data.root))
    serial = KeyRing(fleet.data, ORGANIZATION).load().keys.serial
    # Who is attached is told on the stream; who is on demand hears that there is news, calls, and is told.
    for name in ("attached", "a", LONG[0]):
        await _knows(fleet, name, serial)
        assert _keys(fleet, name).find(stolen.key_id, time.time()) is RefusalReason.REVOKED_KEY
    await _gone(operator, "a")
    before = len(fleet.nodes["a"].agent.log.read_text())
    await _ring(fleet, stolen.private_key)
    await _logged(fleet.nodes["a"], "doorbell.refused", after=before)
    # Who was away is told when it comes back, before its first order.
    assert isinstance(_keys(fleet, "b").find(stolen.key_id, time.time()), PublicKey)
    await away.agent.start()
    assert (await operator.run("true", "b", "a", "attached")).states() == dict.fromkeys(
        ("b", "a", "attached"), "succeeded"
    )
    assert _keys(fleet, "b").find(stolen.key_id, time.time()) is RefusalReason.REVOKED_KEY
    await fleet.wait_up()


@within(60)
async def test_controller_and_agents_announce_themselves_on_the_ring(fleet: Fleet, operator: Operator) -> None:
    serf = _serf(fleet, "attached")
    async with serf.connect() as connection:
        events = await connection.subscribe(STREAM_USER_EVENTS)
        await _restart(fleet.nodes["a"])
        await fleet.controller.stop()
        await fleet.controller.start()
        heard = set()
        async for event in events:
            if isinstance(event, UserEventReceived):
                heard.add((event.name, event.payload))
            if heard >= {(AGENT_START_EVENT, b"a"), (CONTROLLER_START_EVENT, b"default:controller")}:
                break
    await fleet.wait_up()


@within(60)
async def test_streams_carry_on_while_the_controllers_serf_is_away_and_doorbells_come_back_with_it(
    fleet: Fleet, operator: Operator
) -> None:
    await _gone(operator, "a")
    assert fleet.serf is not None
    await fleet.serf.kill()
    while (await operator.client.get_server_info()).serf.connected:  # noqa: ASYNC110
        await trio.sleep(0.05)
    assert (await operator.client.get_server_info()).serf.last_error
    assert (await operator.run("true", "attached")).states() == {"attached": "succeeded"}
    job_id = await operator.start("true", "a")
    await fleet.serf.start(join=[_serf(fleet, "a").gossip_port])
    assert (await operator.finished(job_id)).states() == {"a": "succeeded"}
    await fleet.wait_up()


@within(60)
async def test_an_order_whose_doorbell_was_missed_is_pulled_when_the_nodes_serf_is_back(
    fleet: Fleet, operator: Operator
) -> None:
    await _gone(operator, "a")
    await _serf(fleet, "a").kill()
    job_id = await operator.start("true", "a")
    await _serf(fleet, "a").start(join=[_serf(fleet, "b").gossip_port])
    assert (await operator.finished(job_id)).states() == {"a": "succeeded"}
    await fleet.wait_up()


@within(60)
async def test_a_controller_that_starts_without_serf_serves_streams_and_takes_serf_when_it_comes(
    fleet: Fleet, operator: Operator
) -> None:
    assert fleet.serf is not None
    await fleet.controller.stop()
    await fleet.serf.kill()
    await fleet.controller.start()
    await fleet.wait_up(["attached"])
    info = (await operator.client.get_server_info()).serf
    assert (info.configured, info.connected) == (True, False)
    assert (await operator.run("true", "attached")).states() == {"attached": "succeeded"}
    await fleet.serf.start(join=[_serf(fleet, "b").gossip_port])
    await fleet.wait_up()
    await _gone(operator, "a")
    assert (await operator.run("true", "a")).states() == {"a": "succeeded"}


@within(60)
async def test_an_agent_without_its_serf_says_so_and_is_there_when_it_comes(fleet: Fleet, operator: Operator) -> None:
    node = fleet.nodes["a"]
    await node.agent.stop()
    await _serf(fleet, "a").kill()
    before = len(node.agent.log.read_text())
    await node.agent.start()
    await _logged(node, "serf.lost", after=before)
    await _serf(fleet, "a").start(join=[_serf(fleet, "b").gossip_port])
    await fleet.wait_up()
    await _gone(operator, "a")
    assert (await operator.run("true", "a")).states() == {"a": "succeeded"}


@within(90)
async def test_an_encrypted_ring_with_an_rpc_key_works(tmp_path: Path) -> None:
    node = _node(tmp_path, "a")
    async with (
        open_fleet(tmp_path, [node], serf=True, encrypt_key=bytes(range(32)), auth_key="a secret word") as fleet,
        open_operator(fleet) as operator,
    ):
        await _gone(operator, "a")
        assert (await operator.run("hello", "a")).states() == {"a": "succeeded"}
        logs = [path.read_text() for path in tmp_path.glob("*.log") if not path.name.startswith("serf-")]
        assert not any("a secret word" in log for log in logs)
        assert fleet.noise() == []


@within(90)
async def test_names_that_no_doorbell_can_carry_are_reported(tmp_path: Path) -> None:
    # The longest names there are, and the smallest limit that serf may be configured to have.
    name = "x" * 128
    fleet_options: dict[str, Any] = {"settings": {"serf.query_size_limit": "512"}, "controller_name": "c" * 128}
    async with (
        open_fleet(tmp_path, [_node(tmp_path, "a")], serf=True, **fleet_options) as fleet,
        open_operator(fleet) as operator,
    ):
        assert list((await operator.client.get_server_info()).unaddressable_nodes) == []
        await fleet.enroll(name, tmp_path / "long")
        assert list((await operator.client.get_server_info()).unaddressable_nodes) == [name]
        await fleet.controller.stop()
        await fleet.controller.start()
        await fleet.wait_up()
        while "serf.names_do_not_fit" not in fleet.controller.log.read_text():  # noqa: ASYNC110
            await trio.sleep(0.05)
        assert (await operator.run("true", "a")).states() == {"a": "succeeded"}
        assert fleet.noise() == []


def _keys(fleet: Fleet, name: str) -> TrustedKeys:
    """What a node believes, as it stands on its disk."""
    return TrustedKeys.load(CredentialStore(fleet.nodes[name].state_dir).signing_keys, ORGANIZATION)


async def _knows(fleet: Fleet, name: str, serial: int) -> None:
    while _keys(fleet, name).serial < serial:  # noqa: ASYNC110 - another process writes it
        await trio.sleep(0.05)


def _serf(fleet: Fleet, name: str) -> SerfAgentProcess:
    serf = fleet.nodes[name].serf
    assert serf is not None
    return serf


async def _restart(node: FleetNode) -> None:
    await node.agent.stop()
    await node.agent.start()


async def _logged(node: FleetNode, event: str, *, after: int = 0) -> None:
    while event not in node.agent.log.read_text()[after:]:
        node.agent.check()
        await trio.sleep(0.05)


async def _gone(operator: Operator, *names: str) -> None:
    """Waits until these on-demand agents are up and not attached."""
    for name in names:
        while (await operator.client.get_node(name)).attached:  # noqa: ASYNC110
            await trio.sleep(0.05)


@asynccontextmanager
async def _ring_heard(fleet: Fleet, name: str) -> AsyncIterator[Any]:
    """What a node's serf agent hears of doorbells meanwhile: a function that waits for so many."""
    async with _serf(fleet, name).connect() as connection:
        events = await connection.subscribe(STREAM_DOORBELLS)

        async def heard(count: int) -> None:
            async for event in events:
                count -= isinstance(event, QueryReceived)
                if not count:
                    return

        yield heard


async def _ring(fleet: Fleet, key: Ed25519PrivateKey, *, named: Ed25519PrivateKey | None = None) -> str:
    """Rings everybody, signed by ``key``, which is said to be ``named``; returns the job it is about."""
    job_id = str(uuid.uuid4())
    now = int(time.time())
    doorbell = Doorbell(
        kind=DoorbellKind.START,
        key_id=short_key_id((named or key).public_key()),
        organization=organization_hash(ORGANIZATION),
        job_id=job_id,
        spread_ms=0,
        issued_at=now,
        expires_at=now + 60,
        epoch=now,
        audience=Audience.ALL,
    )
    signer: Signer = key
    query = PlannedQuery(
        name=DOORBELL_QUERY,
        payload=encode(doorbell, signer),
        filter_nodes=(),
        targets=(),
        request_ack=False,
        timeout=5,
        size=0,
    )
    async with _serf(fleet, "attached").connect() as connection:
        await connection.query(query, QueryProgress((), on_settled=lambda: None))
    return job_id
