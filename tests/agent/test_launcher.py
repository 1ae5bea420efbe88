"""The launcher as a process: what it refuses to start with, whom it lets in, and what either part's end does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from lab.limits import within
from lab.signing import key_set_of
from shovey_agent.desk.client import LauncherAway, RemoteDesk
from shovey_agent.desk.desk import Taken
from shovey_agent.desk.launcher import LauncherUnusable, listening
from shovey_agent.desk.launcher_trust import LauncherNotSetUp, load_trust, save_trust
from shovey_agent.desk.trusted_keys import NoKeys
from shovey_agent.desk.whitelist_file import open_whitelist
from shovey_agent.run.accounts import Account, acting_as
from shovey_agent.run.runs import RunPhase
from shovey_trio.core.trust.key_sets import KeySetRefused
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import NodeIdentity
from shovey_trio.core.whitelist.whitelist import WhitelistInvalid
from shovey_trio.demo.processes import run_as
from shovey_trio.identity.files import FileUnusable, InsecureFile
from shovey_trio.v1 import launcher_pb2 as pb

from .launcher_rig import IDENTITY, Installation


@pytest.fixture
def launcher(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


class Listener:
    """Notes what a desk tells."""

    def __init__(self) -> None:
        self.noted: dict[str, bool] = {}
        self.hung_up = 0
        self.changed = trio.Event()

    def note(self, run_id: str, *, output: bool = False) -> None:
        self.noted[run_id] = output
        self._change()

    def hang_up(self, reason: str) -> None:
        assert reason
        self.hung_up += 1
        self._change()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self.changed.wait()

    def _change(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


async def start_in_vain(launcher: Installation) -> tuple[int, str]:
    """Exit code and last words of a launcher that must not come up."""
    await launcher.process.start()
    return await launcher.process.wait(), launcher.process.tail(1)


@within(60)
@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda it: it.whitelist.chmod(0o666), "can write"),
        (lambda it: it.state_dir.chmod(0o755), "INSECURE_FILE"),
        (lambda it: it.socket.parent.chmod(0o777), "LAUNCHER_UNUSABLE"),
    ],
    ids=["whitelist", "state", "socket"],
)
async def test_a_launcher_does_not_start_where_others_can_write(
    launcher: Installation, spoil: Callable[[Installation], object], word: str
) -> None:
    spoil(launcher)
    code, said = await start_in_vain(launcher)
    assert code == 2
    assert word in said


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda it: (it.state_dir / "signing-keys.json").chmod(0o644), InsecureFile),
        (lambda it: (it.state_dir / "identity.json").chmod(0o640), InsecureFile),
        (lambda it: (it.state_dir / "identity.json").unlink(), LauncherNotSetUp),
        (lambda it: (it.state_dir / "identity.json").write_text("{}"), FileUnusable),
        (lambda it: (it.state_dir / "signing-keys.json").write_text("{}"), FileUnusable),
        (lambda it: (it.state_dir / "signing-keys.json").unlink(), NoKeys),
    ],
)
def test_trust_that_is_not_whole_or_not_private_is_none(
    launcher: Installation, spoil: Callable[[Installation], object], error: type[Exception]
) -> None:
    assert load_trust(launcher.state_dir).identity == IDENTITY
    spoil(launcher)
    with pytest.raises(error):
        load_trust(launcher.state_dir)


def test_a_whitelist_in_a_directory_that_others_can_write_is_broken(launcher: Installation) -> None:
    assert open_whitelist(launcher.whitelist, guarded=True).problems == ()
    launcher.whitelist.parent.chmod(0o777)
    with pytest.raises(WhitelistInvalid, match="can write"):
        open_whitelist(launcher.whitelist, guarded=True)
    launcher.whitelist.parent.chmod(0o1777)  # as /tmp: nobody can replace another's file
    open_whitelist(launcher.whitelist, guarded=True)


def test_a_path_that_something_else_has_is_not_taken_for_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "launcher.sock"
    path.write_text("a file")
    with pytest.raises(LauncherUnusable), listening(path, owner=os.geteuid()):
        pass
    assert path.read_text() == "a file"


@within(60)
async def test_two_launchers_do_not_share_a_directory(launcher: Installation) -> None:
    async with launcher.running():
        second = launcher.with_plan(replace(launcher.plan, socket=str(launcher.socket.with_name("other.sock"))))
        second.log = launcher.directory / "second.log"
        await second.start()
        assert await second.wait() == 2
        assert "another agent works in" in second.tail()


@within(60)
async def test_a_launcher_without_an_account_for_its_network_part_does_not_start(launcher: Installation) -> None:
    launcher.process = launcher.with_plan(replace(launcher.plan, user="no-such-account"))
    code, said = await start_in_vain(launcher)
    assert (code, "no-such-account" in said) == (2, True)


@within(60)
async def test_a_whitelist_that_others_could_write_by_now_is_not_taken(launcher: Installation) -> None:
    async with launcher.running():
        launcher.whitelist.write_text('{"whitelist": {"evil": "true"}}')
        launcher.whitelist.chmod(0o666)
        async with launcher.connected() as peer:
            assert await peer.refusal(launcher.sign(launcher.order(command="evil"))) == "not_whitelisted"
            launcher.whitelist.chmod(0o600)
            verdict = await peer.hand_in(launcher.sign(launcher.order(command="evil")))
            assert verdict.kind == pb.ORDER_VERDICT_KIND_TAKEN


def test_what_the_root_did_not_sign_and_a_controller_without_root_set_no_launcher_up(launcher: Installation) -> None:
    keys = key_set_of("org", launcher.key, serial=2)
    published = launcher.published(keys)
    with pytest.raises(LauncherNotSetUp):
        save_trust(launcher.state_dir, IDENTITY, PublishedKeys(keys=keys), root_public_key=b"")
    with pytest.raises(KeySetRefused):
        save_trust(launcher.state_dir, IDENTITY, published, root_public_key=bytes(32))
    with pytest.raises(KeySetRefused):
        save_trust(launcher.state_dir, replace(IDENTITY, organization="other"), published, root_public_key=b"")


@within(60)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other accounts' processes")
async def test_a_process_of_another_account_is_turned_away_whatever_the_mode_of_the_socket(
    launcher: Installation,
) -> None:
    with open_directories(launcher.directory):
        async with launcher.running():
            connect = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(9))"
            command = [*run_as("nobody"), sys.executable, "-I", "-S", "-c", connect, str(launcher.socket)]
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            assert b"PermissionError" in done.stderr
            launcher.socket.chmod(0o666)
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            assert (done.stdout, done.stderr) == (b"b''\n", b"")
            assert len(launcher.logged("peer.turned_away")) == 1


def open_directories(directory: Path) -> AbstractContextManager[object]:
    """Lets others pass through a directory and those above it; closed again at the end."""
    stack = ExitStack()
    for each in (directory, *directory.parents):
        mode = each.stat().st_mode & 0o7777
        if not mode & 0o001:
            each.chmod(mode | 0o011)
            stack.callback(each.chmod, mode)
    return stack


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
def test_root_that_acts_as_an_account_writes_what_is_that_account_s_and_is_root_again(tmp_path: Path) -> None:
    account = Account(name="nobody", home="/", uid=65534, gid=65534, groups=(65534,))
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    os.chown(own, account.uid, account.gid)
    ours = tmp_path / "ours"
    ours.write_text("root's")
    ours.chmod(0o600)
    (own / "trap").symlink_to(ours)
    groups = os.getgroups()
    with open_directories(tmp_path), acting_as(account):
        (own / "file").write_text("mine")
        with pytest.raises(PermissionError):
            (own / "trap").write_text("led astray")
    assert ((own / "file").stat().st_uid, (own / "file").stat().st_gid) == (account.uid, account.gid)
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, groups)
    assert ours.read_text() == "root's"


@within(60)
async def test_the_remote_desk_begins_again_with_a_launcher_that_was_killed(launcher: Installation) -> None:
    desk, listener = RemoteDesk(launcher.socket, IDENTITY), Listener()
    with pytest.raises(LauncherAway):
        await desk.confirm("run")
    async with launcher.running(), trio.open_nursery() as nursery:
        nursery.start_soon(desk.serve, listener)
        await desk.wait_ready()
        order = launcher.order(command="wait")
        verdict = await desk.take(launcher.sign(order), controller_now=order.issued_at)
        assert isinstance(verdict, Taken)
        await listener.until(lambda: phase(desk, order.run_id) is RunPhase.RUNNING)
        await launcher.process.kill()
        await listener.until(lambda: listener.hung_up == 1)
        with pytest.raises(LauncherAway):
            await desk.read_output(order.run_id, 0, 100)
        await launcher.start()
        await desk.wait_ready()
        assert phase(desk, order.run_id) is RunPhase.RUNNING
        assert [chunk.data for chunk in await desk.read_output(order.run_id, 0, 100)] == [b"begun\n"]
        word = await desk.ask("no such", order.input)
        assert (word.permitted, word.reason) == (False, "not_whitelisted")
        nursery.cancel_scope.cancel(reason="the test is over")


def phase(desk: RemoteDesk, run_id: str) -> RunPhase | None:
    known = desk.known_run(run_id)
    return None if known is None else known.phase


@within(60)
async def test_a_network_part_does_not_work_with_a_launcher_of_another_node(launcher: Installation) -> None:
    other = NodeIdentity(organization="org", node="n", agent_instance="enrolled again")
    desk = RemoteDesk(launcher.socket, other)
    async with launcher.running(), trio.open_nursery() as nursery:
        nursery.start_soon(desk.serve, Listener())
        while len(launcher.logged("network_part.connected")) < 3:  # it tries, and tries again
            await trio.sleep(0.05)
        assert desk.known_runs() == ()
        with trio.move_on_after(0) as waited:
            await desk.wait_ready()
        assert waited.cancelled_caught
        nursery.cancel_scope.cancel(reason="the test is over")


def test_a_socket_that_a_killed_launcher_left_is_replaced_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "launcher.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(path, owner=os.geteuid()):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_the_launcher_has_neither_grpc_nor_pydantic_in_memory() -> None:
    program = (
        "import sys, shovey_agent.desk.launcher;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'grpc', 'pydantic', 'click', 'msgpack'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
