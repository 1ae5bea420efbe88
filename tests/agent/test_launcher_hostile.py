"""A network part that has been taken over: whatever it says to the launcher, nothing runs and nothing ends by its word.

The launcher is a real process; the peer is written by hand here. After each attack a good order runs, which shows that
the launcher lives, and the ledger that the commands write holds that run and no other.
"""

from __future__ import annotations

import struct
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.limits import within
from lab.signing import key_set_of
from shovey_trio.core.jobs.command_input import CommandInput, Secrets
from shovey_trio.core.trust.orders import OrderKind, SignedOrder
from shovey_trio.identity.signing_keys import make_signing_key
from shovey_trio.v1 import agent_service_pb2
from shovey_trio.v1 import launcher_pb2 as pb

from .launcher_rig import Installation, Peer
from .orders import EPOCH

RUNNING = agent_service_pb2.KNOWN_RUN_STATE_RUNNING
FINISHED = agent_service_pb2.KNOWN_RUN_STATE_FINISHED


@pytest.fixture
def launcher(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


async def good_run(launcher: Installation, peer: Peer, **changes: Any) -> str:
    """The launcher lives: a good order runs."""
    order = launcher.order(**changes)
    verdict = await peer.hand_in(launcher.sign(order))
    assert verdict.kind == pb.ORDER_VERDICT_KIND_TAKEN, verdict
    ended = await peer.run_in_state(order.run_id, FINISHED)
    assert (ended.exit.cause, ended.exit.exit_code) == ("exited", 0)
    return order.run_id


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@within(60)
async def test_an_order_that_is_not_signed_as_it_is_starts_nothing(launcher: Installation) -> None:
    async with launcher.running(), launcher.connected() as peer:
        good = launcher.sign(launcher.order())
        stranger = make_signing_key(0.0)
        forged: list[tuple[SignedOrder, str]] = [
            (replace(good, signature=b""), "bad_signature"),
            (replace(good, signature=bytes(64)), "bad_signature"),
            (replace(good, key_id=""), "unknown_key"),
            (launcher.sign(launcher.order(), stranger), "unknown_key"),
            (replace(launcher.sign(launcher.order(), stranger), key_id=launcher.key.key_id), "bad_signature"),
            (replace(good, order=good.order + b"\x00"), "bad_signature"),
            (replace(good, order=b""), "bad_signature"),
            *((replace(good, order=flip(good.order, at)), "bad_signature") for at in range(0, len(good.order), 7)),
            *((replace(good, signature=flip(good.signature, at)), "bad_signature") for at in range(0, 64, 7)),
        ]
        for signed, reason in forged:
            assert await peer.refusal(signed) == reason
        # Other argv, other account: nothing but the order's bytes says what runs, and these are signed.
        other = launcher.sign(launcher.order(command="wait", input=CommandInput(user="root", args={"x": "y"})))
        assert await peer.refusal(replace(other, signature=good.signature)) == "bad_signature"
        run_id = await good_run(launcher, peer)
        assert launcher.ran() == [run_id]
        counted = {record["reason"]: record["count"] for record in launcher.logged("order.refused")}
        assert counted["unknown_key"] == 2
        assert counted["bad_signature"] >= 20


@within(60)
async def test_an_order_that_was_signed_for_something_else_starts_nothing(launcher: Installation) -> None:
    signed_for: list[tuple[dict[str, Any], str]] = [
        ({"organization": "other"}, "other_organization"),
        ({"node": "m"}, "other_node"),
        ({"agent_instance": "older"}, "other_instance"),
        ({"epoch": EPOCH - 1, "job_id": "the-first"}, "old_epoch"),
        ({"command": "rm"}, "not_whitelisted"),
        ({"input": CommandInput(args={"file": "x"})}, "argument_not_permitted"),
        ({"input": CommandInput(env={"LD_PRELOAD": "x.so"})}, "env_not_permitted"),
        ({"input": CommandInput(stdin=b"x")}, "stdin_not_permitted"),
        ({"input": CommandInput(user="daemon")}, "user_not_permitted"),
        ({"run_id": "../../../etc/cron.d/x"}, "malformed"),
        ({"run_id": ".."}, "malformed"),
        ({"run_id": "a/b"}, "malformed"),
        ({"run_id": "x" * 65}, "malformed"),
    ]
    before = outside(launcher)
    async with launcher.running(), launcher.connected() as peer:
        first = await good_run(launcher, peer, job_id="the-first")  # from here on its epoch is known
        for changes, reason in signed_for:
            assert await peer.refusal(launcher.sign(launcher.order(**changes))) == reason
        last = await good_run(launcher, peer)
        assert launcher.ran() == [first, last]
        assert outside(launcher) == before
        assert {record["reason"] for record in launcher.logged("order.refused")} == {word for _, word in signed_for}


def outside(launcher: Installation) -> set[str]:
    """Everything beside the launcher's own directories, where nothing may appear."""
    own = {launcher.state_dir, launcher.socket.parent}
    mine = {launcher.ledger, launcher.process.log}
    return {str(path) for path in launcher.directory.rglob("*") if path not in mine and not own & {path, *path.parents}}


@within(60)
async def test_an_order_starts_one_run_once_whatever_was_confirmed_and_restarted_in_between(
    launcher: Installation,
) -> None:
    async with launcher.running():
        async with launcher.connected() as peer:
            signed = launcher.sign(order := launcher.order())
            assert (await peer.hand_in(signed)).kind == pb.ORDER_VERDICT_KIND_TAKEN
            await peer.run_in_state(order.run_id, FINISHED)
            assert (await peer.hand_in(signed)).kind == pb.ORDER_VERDICT_KIND_KNOWN
            # "The controller has the report": the spool is cleared, and the order comes again.
            assert await peer.confirm(order.run_id)
            assert not await peer.confirm(order.run_id)
            assert await peer.refusal(signed) == "replayed"
            # The same nonce for another run, and the controller's clock set back and forth.
            other = launcher.sign(replace(order, run_id=str(uuid.uuid4())))
            assert await peer.refusal(other) == "replayed"
            for drift in (-1e9, 0.0, 1e9):
                await peer.hand_in(launcher.sign(launcher.order(command="rm")), controller_time=time.time() + drift)
                assert await peer.refusal(signed, controller_time=time.time() - 500) in {"replayed", "expired"}
        await launcher.process.kill()
        await launcher.start()
        async with launcher.connected() as peer:
            assert await peer.refusal(signed) == "replayed"
            last = await good_run(launcher, peer)
        assert launcher.ran() == [order.run_id, last]


@within(60)
async def test_an_order_that_was_held_back_does_not_outlive_its_expiry_by_more_than_the_clocks_may_differ(
    launcher: Installation,
) -> None:
    async with launcher.running(), launcher.connected() as peer:
        now = time.time()
        held_back = launcher.order(issued_at=now - 2000, expires_at=now - 1500)
        # Whoever holds an order back also says what time it is.
        for claimed in (now - 1800, 0.0, -1e300):
            assert await peer.refusal(launcher.sign(held_back), controller_time=claimed) == "expired"
        early = launcher.order(issued_at=now + 4000, expires_at=now + 4060)
        assert await peer.refusal(launcher.sign(early), controller_time=now + 4000) == "future_dated"
        assert launcher.ran() == []
        await good_run(launcher, peer)


@within(60)
async def test_nothing_but_a_signed_cancel_ends_a_run_and_that_one_alone(launcher: Installation) -> None:
    async with launcher.running(), launcher.connected() as peer:
        order = launcher.order(command="wait")
        await peer.hand_in(launcher.sign(order))
        await peer.run_in_state(order.run_id, RUNNING)
        cancel = replace(order, kind=OrderKind.CANCEL, nonce=uuid.uuid4().bytes)
        forged = replace(launcher.sign(cancel), signature=bytes(64))
        assert await peer.refusal(forged) == "bad_signature"
        assert await peer.refusal(launcher.sign(cancel, make_signing_key(0.0))) == "unknown_key"
        other_node = replace(cancel, node="m")
        assert await peer.refusal(launcher.sign(other_node)) == "other_node"
        # To say that the report is durable does not end a run, nor make the launcher forget it.
        assert not await peer.confirm(order.run_id)
        await good_run(launcher, peer)
        known = [run for run in await runs_now(launcher) if run.run_id == order.run_id]
        assert [(run.state, run.cancelling) for run in known] == [(RUNNING, False)]

        assert (await peer.hand_in(launcher.sign(cancel))).kind == pb.ORDER_VERDICT_KIND_ENDING
        ended = await peer.run_in_state(order.run_id, FINISHED)
        assert ended.exit.cause == "cancelled"


async def runs_now(launcher: Installation) -> list[pb.SpooledRun]:
    """All runs, as somebody who connects now is told them."""
    async with launcher.connected() as peer:
        return [reply.news.run for reply in peer.replies if reply.HasField("news")]


@within(60)
async def test_a_run_that_was_cancelled_before_it_came_cannot_be_brought_to_life(launcher: Installation) -> None:
    async with launcher.running(), launcher.connected() as peer:
        start = launcher.order()
        cancel = replace(start, kind=OrderKind.CANCEL, nonce=uuid.uuid4().bytes)
        assert (await peer.hand_in(launcher.sign(cancel))).kind == pb.ORDER_VERDICT_KIND_VOIDED
        assert await peer.refusal(launcher.sign(start)) == "replayed"
        await launcher.process.kill()
        await launcher.start()
        async with launcher.connected() as again:
            assert await again.refusal(launcher.sign(start)) == "replayed"
            assert launcher.ran() == []


@within(60)
async def test_output_is_read_of_runs_that_are_known_and_of_no_file_beside_them(launcher: Installation) -> None:
    async with launcher.running(), launcher.connected() as peer:
        (launcher.state_dir / "runs" / "planted").mkdir(mode=0o700)
        secret = launcher.state_dir / "runs" / "output"
        secret.write_bytes(b"not output")
        for run_id in ("..", "../runs", ".", "", "/", "planted", "../../launcher", "\0", "x" * 10_000):
            assert await peer.read(run_id) == b""
            assert not await peer.confirm(run_id)
            await peer.ask(pb.LauncherRequest(follow_spool=pb.FollowSpool(run_id=run_id, followed=True)))
        run_id = await good_run(launcher, peer)
        assert secret.exists()
        assert (launcher.state_dir / "runs" / "planted").is_dir()
        assert launcher.ran() == [run_id]


@within(60)
async def test_secrets_reach_the_command_and_come_back_redacted_and_cannot_be_exchanged(
    launcher: Installation,
) -> None:
    async with launcher.running(), launcher.connected() as peer:
        order = launcher.order(command="say", input=CommandInput(secrets=Secrets(env={"TOKEN": "quite a secret"})))
        signed = launcher.sign(order)
        other = launcher.sign(
            launcher.order(command="say", input=CommandInput(secrets=Secrets(env={"TOKEN": "put in its place"})))
        )
        assert await peer.refusal(replace(signed, sealed=other.sealed)) == "bad_signature"
        assert await peer.refusal(replace(signed, sealed=b"")) == "bad_signature"
        await peer.hand_in(signed)
        await peer.run_in_state(order.run_id, FINISHED)
        assert await peer.read(order.run_id) == b"secret: [redacted]\n"
        heard = b"".join(reply.SerializeToString() for reply in peer.replies)
        assert b"quite a secret" not in heard
        kept = [path for path in launcher.state_dir.rglob("*") if path.is_file()]
        assert not [path for path in kept if b"quite a secret" in path.read_bytes()]
        assert "quite a secret" not in launcher.process.log.read_text()


@within(60)
async def test_key_sets_are_taken_from_the_root_alone_and_never_go_back(launcher: Installation) -> None:
    fresh = make_signing_key(0.0)
    thief = make_signing_key(0.0)

    def signed_set(*keys: Any, serial: int, root: Ed25519PrivateKey | None = None, organization: str = "org") -> bytes:
        return launcher.published(key_set_of(organization, *keys, serial=serial), root=root).signed

    async def learn(peer: Peer, signed: bytes) -> bool:
        answer = await peer.ask(pb.LauncherRequest(learn_keys=pb.LearnKeys(signed_key_set=signed)))
        return answer.done.changed

    first = signed_set(launcher.key, serial=1)
    async with launcher.running():
        async with launcher.connected() as peer:
            stolen = signed_set(thief, serial=9)
            for refused in (
                signed_set(thief, serial=2, root=Ed25519PrivateKey.generate()),
                signed_set(thief, serial=2, organization="other"),
                stolen[64:],
                bytes(64) + stolen[64:],
                flip(stolen, 70),
                b"",
                b"\xff" * 100_000,
            ):
                assert not await learn(peer, refused)
            assert await peer.refusal(launcher.sign(launcher.order(), thief)) == "unknown_key"
            assert await learn(peer, signed_set(fresh, serial=3))
            assert not await learn(peer, signed_set(fresh, serial=3))
            assert not await learn(peer, signed_set(launcher.key, serial=2))
            assert not await learn(peer, first)
            assert await peer.refusal(launcher.sign(launcher.order())) == "unknown_key"
        await launcher.process.kill()
        await launcher.start()
        async with launcher.connected() as peer:
            (ready,) = [reply.ready for reply in peer.replies if reply.HasField("ready")]
            assert ready.key_set_serial == 3
            assert not await learn(peer, first)
            assert await peer.refusal(launcher.sign(launcher.order())) == "unknown_key"
            launcher.key = fresh
            run_id = await good_run(launcher, peer)
        assert launcher.ran() == [run_id]
        assert launcher.logged("order.refused")


@within(60)
async def test_a_frame_that_is_none_costs_its_sender_the_connection(launcher: Installation) -> None:
    frames = {
        "huge": struct.pack("!I", 2**32 - 1),
        "empty": struct.pack("!I", 0),
        "too large": struct.pack("!I", 1024 * 1024 + 1) + b"x" * 100,
        "no message": struct.pack("!I", 5) + b"\xff" * 5,
        "no request": struct.pack("!I", 2) + b"\x08\x01",
        "cut short": struct.pack("!I", 4) + b"\x08\x01\xba\x3e",
    }
    async with launcher.running(), launcher.connected() as honest:
        for frame in frames.values():
            async with launcher.connected() as peer:
                await peer.stream.send_all(frame)
                await peer.cut_off()
        await good_run(launcher, honest)
        assert len(launcher.logged("network_part.cut_off")) == len(frames)


@within(60)
async def test_requests_without_sense_cost_the_connection_too(launcher: Installation) -> None:
    async with launcher.running():
        for request in (
            pb.LauncherRequest(read_spool=pb.ReadSpool(run_id="x", position=-1, limit=10)),
            pb.LauncherRequest(read_spool=pb.ReadSpool(run_id="x", position=0, limit=-(2**60))),
            pb.LauncherRequest(take_order=pb.TakeOrder(controller_time=float("nan"))),
            pb.LauncherRequest(take_order=pb.TakeOrder(controller_time=float("inf"))),
        ):
            async with launcher.connected() as peer:
                await peer.send(request)
                await peer.cut_off()
        async with launcher.connected() as peer:
            # Half a frame, and gone.
            await peer.stream.send_all(struct.pack("!I", 1000) + b"x")
        async with launcher.connected() as peer:
            await good_run(launcher, peer)


@within(90)
async def test_a_thousand_connections_and_one_that_never_reads_leave_room_for_work(launcher: Installation) -> None:
    async with launcher.running(), launcher.connected() as peer:
        deaf = await trio.open_unix_socket(str(launcher.socket))
        async with deaf:
            ask = pb.LauncherRequest(id=1, take_order=pb.TakeOrder(controller_time=time.time())).SerializeToString()
            with trio.move_on_after(1):  # until nothing fits into the socket any more: it is not read on
                for _ in range(20_000):
                    await deaf.send_all(struct.pack("!I", len(ask)) + ask)
            for _ in range(1000):
                async with await trio.open_unix_socket(str(launcher.socket)):
                    pass
            run_id = await good_run(launcher, peer)
        assert launcher.ran() == [run_id]
        # They did not fill the log: sixty lines a minute, for a test of at most two, and what the good run says.
        assert len(launcher.process.log.read_text().splitlines()) < 200


@within(60)
async def test_refusals_beyond_so_many_a_minute_are_counted_and_not_written(launcher: Installation) -> None:
    async with launcher.running(), launcher.connected() as peer:
        forged = replace(launcher.sign(launcher.order()), signature=bytes(64))
        for _ in range(300):
            assert await peer.refusal(forged) == "bad_signature"
        assert 0 < len(launcher.logged("order.refused")) <= 120  # two minutes' worth, should one just end
        run_id = await good_run(launcher, peer)
        assert launcher.ran() == [run_id]
