"""The gate by itself: what it believes, what it lets run and as whom, and what it uses up by being asked."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lab.signing import key_set_of
from shovey_agent.desk.epoch import JobEpochs
from shovey_agent.desk.gate import VOID_LIFETIME, Cleared, OrderGate, Refusal
from shovey_agent.desk.nonces import NonceFile, open_nonces
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.run.runs import RunSpec
from shovey_agent.supervisor.proc_posix import elapsed_clock
from shovey_trio.core.jobs.command_input import NO_INPUT, CommandInput, Secrets
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.core.trust.orders import NodeIdentity, Order, OrderKind, RefusalReason, SignedOrder
from shovey_trio.identity.signing_keys import make_signing_key
from shovey_trio.rpc.signer import ActiveKeySigner

from .orders import EPOCH, make_order

NOW = 1_800_000_000.0
LIFE = 7200.0
KEY: SigningKey = make_signing_key(0.0)
OWN = pwd.getpwuid(os.geteuid()).pw_name


def signed(order: Order, key: SigningKey = KEY) -> SignedOrder:
    return ActiveKeySigner({order.organization: key}).sign(order)


def order_now(**changes: Any) -> Order:
    return make_order(**{"issued_at": NOW, "expires_at": NOW + 60, **changes})


@dataclass(frozen=True, slots=True)
class Rig:
    """A gate with what it remembers."""

    gate: OrderGate
    nonces: NonceFile
    epochs: JobEpochs

    async def admit(self, order: Order, *, now: float = NOW) -> RunSpec | Refusal:
        return await self.gate.admit(order, signed(order), controller_now=now)

    async def admitted(self, order: Order, *, now: float = NOW) -> RunSpec:
        spec = await self.admit(order, now=now)
        assert isinstance(spec, RunSpec), spec
        return spec

    async def refused(self, order: Order, *, now: float = NOW) -> RefusalReason:
        refusal = await self.admit(order, now=now)
        assert isinstance(refusal, Refusal)
        assert refusal.order == order, "whom the refusal is for"
        assert refusal.detail, "the word alone does not say which rule"
        return refusal.reason

    def believed(self, order: Order, **more: Any) -> Order | RefusalReason:
        found = self.gate.believe(signed(order), **{"controller_now": NOW, **more})
        return found.reason if isinstance(found, Refusal) else found


async def open_rig(directory: Path, **entries: Any) -> Rig:
    path = directory / "whitelist.json"
    path.write_text(json.dumps(entries or {"true": "true"}))
    nonces = await open_nonces(directory / "nonces", longest_life=LIFE)
    epochs = JobEpochs()
    gate = OrderGate(
        identity=NodeIdentity(organization="org", node="n", agent_instance="instance"),
        keys=key_set_of("org", KEY),
        nonces=nonces,
        voided=await open_nonces(directory / "voided", longest_life=2 * LIFE, keeps_floor=False),
        epochs=epochs,
        whitelist=WhitelistFile(path),
    )
    return Rig(gate, nonces, epochs)


async def test_a_refusal_names_the_order_only_when_its_bytes_could_be_believed(tmp_path: Path) -> None:
    gate = (await open_rig(tmp_path)).gate
    good = signed(order_now())
    for bad, reason in (
        (replace(good, signature=bytes(64)), RefusalReason.BAD_SIGNATURE),
        (replace(good, order=good.order + b"\x00"), RefusalReason.BAD_SIGNATURE),
        (signed(order_now(), make_signing_key(0.0)), RefusalReason.UNKNOWN_KEY),
        (replace(good, sealed=b"of another order"), RefusalReason.MALFORMED),
    ):
        assert gate.believe(bad, controller_now=NOW) == Refusal(reason=reason)
    other = order_now(node="other")
    assert gate.believe(signed(other), controller_now=NOW) == Refusal(reason=RefusalReason.OTHER_NODE, order=other)


async def test_an_order_is_judged_by_the_controllers_time_within_the_skew(tmp_path: Path) -> None:
    rig = await open_rig(tmp_path)
    order = order_now()
    assert rig.believed(order) == order
    assert rig.believed(order, controller_now=NOW + 61) is RefusalReason.EXPIRED
    refusal = rig.gate.believe(signed(order), controller_now=NOW + 61)
    assert isinstance(refusal, Refusal)
    # From issue, from expiry, and of this node's own clock.
    issue, expiry, own = (float(number) for number in re.findall(r"([+-][0-9.]+) s", refusal.detail))
    assert (issue, expiry) == (61.0, 1.0)
    assert own == pytest.approx(time.time() - NOW - 61, abs=60)
    assert rig.believed(order, controller_now=NOW + 61, skew=1.0) == order


async def test_a_clock_that_goes_back_before_the_making_of_a_key_takes_no_order_away(tmp_path: Path) -> None:
    rig = await open_rig(tmp_path)
    rig.gate._keys = key_set_of("org", replace(KEY, created_at=NOW))
    assert isinstance(rig.believed(order_now()), Order)
    early = order_now(issued_at=NOW - 7200, expires_at=NOW)
    assert rig.believed(early, controller_now=NOW - 7200) == early


async def test_a_believed_cancel_raises_the_epoch_of_its_job_and_a_start_only_when_it_is_admitted(
    tmp_path: Path,
) -> None:
    rig = await open_rig(tmp_path)
    start = order_now()
    assert rig.believed(start) == start
    assert rig.epochs.of(start.job_id) == 0
    assert await rig.refused(replace(start, command="other")) is RefusalReason.NOT_WHITELISTED
    assert rig.epochs.of(start.job_id) == 0
    await rig.admitted(start)
    assert rig.epochs.of(start.job_id) == EPOCH
    cancel = replace(start, kind=OrderKind.CANCEL, epoch=EPOCH + 1)
    assert rig.believed(cancel) == cancel
    assert rig.epochs.of(start.job_id) == EPOCH + 1
    assert rig.believed(start) is RefusalReason.OLD_EPOCH
    assert isinstance(rig.believed(order_now(epoch=EPOCH - 1)), Order), "other jobs have epochs of their own"


async def test_what_runs_is_what_the_order_and_the_whitelist_say_and_nothing_else(tmp_path: Path) -> None:
    entry = {
        "argv": ["prog", "{a}"],
        "args": {"a": {}},
        "env": {"FIXED": "1", "E": {}, "S": {}},
        "cwd": "/srv",
        "umask": "077",
        "nice": 5,
        "limits": {"memory": 1 << 30},
        "stdin": True,
        "lock": "db",
        "concurrency": 3,
        "output_cap": 4096,
    }
    rig = await open_rig(tmp_path, c=entry)
    secrets = Secrets(env={"S": "a secret of length"})
    given = CommandInput(args={"a": "x y"}, env={"E": "e"}, stdin=b"in", secrets=secrets)
    order = order_now(command="c", run_timeout=25.0, kill_grace=7.0, input=given)
    before, sent = elapsed_clock(), signed(order)
    spec = await rig.gate.admit(order, sent, controller_now=NOW)
    assert isinstance(spec, RunSpec), spec
    assert before + 25 <= spec.ends_by <= elapsed_clock() + 25
    of_entry = rig.gate._whitelist.current().resolve("c")
    assert replace(spec, ends_by=0.0) == RunSpec(
        run_id=order.run_id,
        job_id=order.job_id,
        epoch=EPOCH,
        node="n",
        command="c",
        argv=("prog", "x y"),
        cwd="/srv",
        env={"FIXED": "1", "E": "e"},
        umask=0o077,
        timeout=25.0,
        ends_by=0.0,
        grace=7.0,
        order=sent.order,
        signature=sent.signature,
        account=None,
        nice=5,
        limits=of_entry.limits,
        stdin=b"in",
        secrets=secrets,
        lock="db",
        concurrency=3,
        output_cap=4096,
    )
    assert of_entry.limits.memory == 1 << 30


async def test_an_entry_that_says_nothing_runs_in_the_root_directory_with_a_umask_of_022(tmp_path: Path) -> None:
    spec = await (await open_rig(tmp_path)).admitted(order_now())
    assert (spec.cwd, spec.umask, spec.nice, spec.account, dict(spec.env)) == ("/", 0o022, 0, None, {})


@pytest.mark.parametrize(("of_entry", "of_order", "used"), [(5, 30, 5), (30, 5, 5), (None, 30, 30)])
async def test_the_shorter_time_of_order_and_entry_counts(
    tmp_path: Path, of_entry: float | None, of_order: float, used: float
) -> None:
    entry = {"argv": ["true"]} if of_entry is None else {"argv": ["true"], "timeout": of_entry}
    spec = await (await open_rig(tmp_path, true=entry)).admitted(order_now(run_timeout=float(of_order)))
    assert spec.timeout == used
    assert spec.ends_by == pytest.approx(elapsed_clock() + used, abs=3)


async def test_a_command_runs_as_the_account_of_its_entry_or_not_at_all(tmp_path: Path) -> None:
    entries = {
        "own": {"argv": ["true"], "user": OWN},
        "nobody": {"argv": ["true"], "user": "nobody"},
        "stranger": {"argv": ["true"], "user": "no-such-account"},
        "group": {"argv": ["true"], "group": "no-such-group"},
    }
    rig = await open_rig(tmp_path, **entries)
    for name in ("stranger", "group"):
        assert await rig.refused(order_now(command=name)) is RefusalReason.USER_NOT_PERMITTED
    own = await rig.gate.clear("own", NO_INPUT)
    assert isinstance(own, Cleared)
    assert (own.account, own.account_name) == (None, "the agent's own account")
    other = await rig.gate.clear("nobody", NO_INPUT)
    if os.geteuid() != 0:  # only root becomes another account
        assert isinstance(other, Refusal)
        assert other.reason is RefusalReason.USER_NOT_PERMITTED
        return
    assert isinstance(other, Cleared)
    assert other.account_name == "nobody"
    account = (await rig.admitted(order_now(command="nobody"))).account
    assert account is not None
    assert account.uid == pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (CommandInput(args={"b": "x"}), RefusalReason.ARGUMENT_NOT_PERMITTED),
        (CommandInput(env={"E": "x"}), RefusalReason.ENV_NOT_PERMITTED),
        (CommandInput(stdin=b"x"), RefusalReason.STDIN_NOT_PERMITTED),
        (CommandInput(user="root"), RefusalReason.USER_NOT_PERMITTED),
    ],
)
async def test_input_that_the_entry_does_not_permit_is_refused_and_uses_nothing_up(
    tmp_path: Path, given: CommandInput, reason: RefusalReason
) -> None:
    rig = await open_rig(tmp_path)
    order = order_now(input=given)
    assert await rig.refused(order) is reason
    assert not rig.nonces.holds(order.nonce)
    await rig.admitted(replace(order, input=NO_INPUT))
    assert rig.nonces.holds(order.nonce)


async def test_a_nonce_admits_one_order(tmp_path: Path) -> None:
    rig = await open_rig(tmp_path)
    await rig.admitted(order := order_now())
    assert await rig.refused(order) is RefusalReason.REPLAYED
    assert await rig.refused(order_now(nonce=order.nonce)) is RefusalReason.REPLAYED


async def test_what_the_nonces_do_not_know_for_sure_is_refused(tmp_path: Path) -> None:
    rig = await open_rig(tmp_path)
    rig.nonces._ledger.floor = NOW + 10
    assert await rig.refused(order_now(expires_at=NOW + 10)) is RefusalReason.EXPIRED
    assert await rig.refused(order_now(expires_at=NOW + LIFE + 1)) is RefusalReason.REPLAYED
    await rig.admitted(order_now(expires_at=NOW + LIFE))


async def test_an_order_whose_nonce_cannot_be_kept_does_not_run(tmp_path: Path) -> None:
    rig = await open_rig(tmp_path)
    (tmp_path / "nonces").unlink()
    order = order_now()
    assert await rig.refused(order) is RefusalReason.SPOOL_FULL
    assert await rig.refused(order) is RefusalReason.REPLAYED
    assert rig.epochs.of(order.job_id) == 0


async def test_a_run_that_was_voided_never_starts_and_voiding_it_again_is_no_error(tmp_path: Path) -> None:
    rig = await open_rig(tmp_path)
    order = order_now()
    cancel = replace(order, kind=OrderKind.CANCEL, nonce=b"c" * 16)
    await rig.gate.void(cancel, controller_now=NOW)
    await rig.gate.void(cancel, controller_now=NOW)
    assert await rig.refused(order) is RefusalReason.REPLAYED
    assert not rig.nonces.holds(order.nonce)
    await rig.admitted(order_now())
    again = await open_rig(tmp_path)
    assert await again.refused(order) is RefusalReason.REPLAYED, "after a restart, too"


async def test_a_run_stays_void_for_an_hour_beyond_the_cancel_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shovey_agent.desk.nonces._PRUNE_AT", 1)  # what may be forgotten soon is
    rig = await open_rig(tmp_path)
    order = order_now()
    await rig.gate.void(replace(order, kind=OrderKind.CANCEL), controller_now=NOW)
    end = NOW + 60 + VOID_LIFETIME
    for at, held in ((end - 1, True), (end, False)):
        for _ in range(2):
            await rig.gate.void(order_now(kind=OrderKind.CANCEL, expires_at=at), controller_now=at)
        assert isinstance(await rig.admit(order), Refusal) is held


async def test_a_ledger_of_void_runs_that_is_damaged_lets_nobody_say_cancelled(tmp_path: Path) -> None:
    (tmp_path / "voided").write_bytes(b"damaged\n")
    os.utime(tmp_path / "voided", (NOW, NOW))
    rig = await open_rig(tmp_path)
    with pytest.raises(OSError, match="below_floor") as caught:
        await rig.gate.void(order_now(kind=OrderKind.CANCEL), controller_now=NOW)
    assert caught.value.errno == errno.EIO
