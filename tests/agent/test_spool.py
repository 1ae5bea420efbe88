"""The spool by itself: what it writes, what it believes of what it reads, and how much it takes."""

from __future__ import annotations

import errno
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest

from shovey_agent.run.accounts import Account
from shovey_agent.run.runs import CancelReason, ExitCause, RunPhase, RunSpec
from shovey_agent.run.spool import RunExists, Spool, SpoolError, SpoolFull, SpoolLimits, command_environment, is_run_id
from shovey_agent.supervisor.spool_files import take_input
from shovey_trio.core.jobs.command_input import Secrets
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import ProofKind
from shovey_trio.core.whitelist.entry import Limits

BOOT = "this boot"
RUN_COST = 28 * 1024
EXIT = {
    "format": 1,
    "cause": "exited",
    "detail": "",
    "exit_code": 0,
    "signal": None,
    "started_at": 1.5,
    "finished_at": 2.5,
    "proof": None,
    "stdout_bytes": 7,
    "stderr_bytes": 5,
    "dropped_stdout": 2,
    "dropped_stderr": 1,
}


def spec_of(run_id: str = "r", **more: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "job_id": "j",
        "node": "n",
        "command": "c",
        "argv": ("p", "x y"),
        "timeout": 60.0,
        "grace": 5.0,
    }
    return RunSpec(run_id=run_id, **{**fields, **more})


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return open_spool(tmp_path)


def open_spool(directory: Path, **limits: int) -> Spool:
    spool = Spool(directory, SpoolLimits(**{"min_free": 0, **limits}))
    spool.prepare()
    return spool


def create(spool: Spool, spec: RunSpec | None = None) -> Path:
    spec = spec or spec_of()
    spool.create(spec, accepted_at=100.0, boot_id=BOOT, cgroup="group")
    return Path(spool.directory(spec.run_id))


def put(spool: Spool, name: str, record: dict[str, Any]) -> None:
    Path(spool.directory("r")).mkdir(parents=True, exist_ok=True)
    Path(spool.directory("r"), name).write_text(json.dumps({"format": 1, **record}))


def test_prepared_twice_the_directory_is_its_owners_alone(tmp_path: Path) -> None:
    for _ in range(2):
        spool = open_spool(tmp_path / "deep" / "state")
    assert stat.S_IMODE(spool.runs.stat().st_mode) == 0o700


def test_a_run_is_durable_with_all_that_its_supervisor_needs(spool: Spool) -> None:
    account = Account(name="www", home="/srv", uid=33, gid=34, groups=(34, 35))
    limits = Limits(memory=1 << 30)
    spec = spec_of(
        epoch=9,
        cwd="/srv",
        env={"E": "e"},
        umask=0o077,
        ends_by=500.0,
        order=b"order",
        signature=b"signature",
        account=account,
        nice=5,
        limits=limits,
        lock="db",
        output_cap=4096,
    )
    directory = create(spool, spec)
    assert (directory / "order").read_bytes() == b"ordersignature"
    assert (directory / "output").read_bytes() == b""
    assert (directory / "exit.reserve").read_bytes() == bytes(4096)
    assert not (directory / "input.json").exists()
    assert json.loads((directory / "spec.json").read_text()) == {
        "format": 1,
        "run_id": "r",
        "job_id": "j",
        "epoch": 9,
        "command": "c",
        "argv": ["p", "x y"],
        "cwd": "/srv",
        "env": {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/srv",
            "USER": "www",
            "E": "e",
            "SHOVEY_JOB_ID": "j",
            "SHOVEY_RUN_ID": "r",
            "SHOVEY_NODE": "n",
        },
        "umask": 0o077,
        "nice": 5,
        "limits": {"memory": 1 << 30},
        "max_processes": SpoolLimits().max_processes,
        "account": [33, 34, 34, 35],
        "lock": "db",
        "timeout": 60.0,
        "ends_by": 500.0,
        "grace": 5.0,
        "head_cap": 4096,
        "tail_cap": SpoolLimits().tail_cap,
        "boot_id": BOOT,
        "accepted_at": 100.0,
        "cgroup": "group",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_what_an_order_does_not_say_is_the_spools_own(tmp_path: Path) -> None:
    record = json.loads((create(open_spool(tmp_path, head_cap=11, tail_cap=12)) / "spec.json").read_text())
    assert (record["head_cap"], record["tail_cap"], record["account"], record["limits"]) == (11, 12, None, {})


def test_a_command_has_its_orders_variables_and_never_those_that_say_whose_it_is() -> None:
    own = pwd.getpwuid(os.geteuid())
    environment = command_environment(spec_of(env={"HOME": "/h", "SHOVEY_NODE": "forged", "A": "1"}))
    assert environment["USER"] == own.pw_name
    assert (environment["HOME"], environment["SHOVEY_NODE"], environment["A"]) == ("/h", "n", "1")
    assert command_environment(spec_of())["HOME"] == own.pw_dir


def test_an_agent_whose_account_has_no_name_still_has_a_home_and_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 2_000_000_000)
    environment = command_environment(spec_of())
    assert (environment["HOME"], environment["USER"]) == ("/", "2000000000")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"stdin": b"in\xff"}, (b"in\xff", {}, set())),
        (
            {"secrets": Secrets(env={"S": "pass\udcff word"}, stdin=b"stdin secret"), "stdin": b"stdin secret"},
            (b"stdin secret", {"S": "pass\udcff word"}, {b"pass\xff word", b"stdin secret"}),
        ),
    ],
)
def test_input_and_secrets_reach_the_supervisor_with_what_is_to_be_redacted(
    spool: Spool, given: dict[str, Any], taken: tuple[bytes, dict[str, str], set[bytes]]
) -> None:
    directory = create(spool, spec_of(**given))
    for name in ("spec.json", "order"):
        assert b"pass" not in (directory / name).read_bytes()
    stdin, env, redact = take_input(str(directory))
    assert (stdin, env) == taken[:2]
    assert taken[2] <= set(redact)
    assert bool(redact) is bool(taken[2])


def test_a_run_that_is_there_whole_or_not_is_left_untouched(spool: Spool) -> None:
    directory = create(spool)
    before = (directory / "spec.json").read_bytes()
    with pytest.raises(RunExists, match=r"^r$"):
        create(spool, spec_of(command="other"))
    assert (directory / "spec.json").read_bytes() == before
    (spool.runs / "half").mkdir()
    with pytest.raises(RunExists):
        create(spool, spec_of("half"))
    assert list((spool.runs / "half").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "full"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EFBIG, True), (errno.EIO, False), (errno.EROFS, False)],
)
@pytest.mark.parametrize("call", ["os.mkdir", "shovey_agent.run.spool.write_file"])
def test_of_a_run_that_the_disk_does_not_take_nothing_is_left(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, number: int, full: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, fail)
    with pytest.raises(SpoolError, match=os.strerror(number)) as caught:
        create(spool)
    assert isinstance(caught.value, SpoolFull) is full
    assert list(spool.runs.iterdir()) == []


def test_runs_are_taken_up_to_the_cap_and_cost_a_few_blocks_each(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, total_cap=RUN_COST + 1000)
    directory = create(spool, spec_of("a"))
    assert spool.used_bytes() == RUN_COST
    (directory / "output").write_bytes(bytes(999))
    create(spool, spec_of("b"))
    assert spool.used_bytes() == 2 * RUN_COST + 999
    with pytest.raises(SpoolFull):
        create(spool, spec_of("c"))
    assert list(spool.run_ids()) == ["a", "b"]
    spool.remove("b")
    (directory / "output").write_bytes(bytes(1000))
    with pytest.raises(SpoolFull):
        create(spool, spec_of("c"))


def test_no_run_is_taken_when_less_than_the_floor_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        f_bavail = 10
        f_frsize = 512

    monkeypatch.setattr("os.statvfs", lambda _: Free())
    create(open_spool(tmp_path, min_free=5120), spec_of("a"))
    with pytest.raises(SpoolFull):
        create(open_spool(tmp_path, min_free=5121), spec_of("b"))


def test_what_is_in_the_directory_and_no_run_is_not_ours(spool: Spool) -> None:
    for name in ("b", "a-B_9", "x" * 64, "x" * 65, ".removed.c", "no run", "n.o"):
        (spool.runs / name).mkdir()
    (spool.runs / "file").write_text("")
    (spool.runs / "link").symlink_to(spool.runs / "b")
    assert list(spool.run_ids()) == ["a-B_9", "b", "x" * 64]
    assert not is_run_id("")
    assert not is_run_id("a\n")


def test_a_run_is_known_by_its_files_in_every_phase(spool: Spool) -> None:
    assert spool.load("r") is None
    directory = create(spool, spec_of(epoch=9, lock="db"))
    known = spool.load("r")
    assert known is not None
    assert (known.run_id, known.job_id, known.epoch, known.accepted_at) == ("r", "j", 9, 100.0)
    assert (known.command, known.lock, known.phase, known.started_at) == ("c", "db", RunPhase.ACCEPTED, None)
    assert (known.cancelling, known.exit, known.reported) == (False, None, False)
    put(spool, "started.json", {"at": 120.0})
    spool.request_cancel("r", reason=CancelReason.CANCEL, grace=3.0)
    known = spool.load("r")
    assert known is not None
    assert (known.phase, known.started_at, known.cancelling) == (RunPhase.RUNNING, 120.0, True)
    put(spool, "exit.json", {**EXIT, "started_at": 121.0})
    spool.mark_reported("r")
    known = spool.load("r")
    assert known is not None
    assert (known.phase, known.started_at, known.reported) == (RunPhase.FINISHED, 121.0, True)
    assert known.exit == spool.exit_report("r")
    assert (directory / "reported").read_bytes() == b""


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 2}', b"\xff"])
def test_a_run_without_a_readable_spec_is_still_a_run(spool: Spool, text: bytes) -> None:
    directory = create(spool)
    (directory / "spec.json").write_bytes(text)
    os.utime(directory, (50.0, 50.0))
    known = spool.load("r")
    assert known is not None
    assert (known.run_id, known.job_id, known.command, known.lock, known.epoch) == ("r", "", "", "", 0)
    assert (known.accepted_at, known.phase) == (50.0, RunPhase.ACCEPTED)
    assert not spool.is_waiting("r", boot_id=BOOT, elapsed=0.0)


def test_what_a_spec_says_and_nobody_could_be_told_is_made_good(spool: Spool) -> None:
    put(spool, "spec.json", {"job_id": "j\ud800", "command": "c\udfff", "epoch": True, "accepted_at": 10**400})
    os.utime(spool.directory("r"), (50.0, 50.0))
    known = spool.load("r")
    assert known is not None
    assert (known.job_id, known.command, known.epoch, known.accepted_at) == ("j?", "c?", 0, 50.0)


@pytest.mark.parametrize("epoch", ["9", 9.0, None])
def test_an_epoch_that_is_no_number_is_none(spool: Spool, epoch: object) -> None:
    put(spool, "spec.json", {"epoch": epoch})
    known = spool.load("r")
    assert known is not None
    assert known.epoch == 0


def test_an_exit_record_is_read_with_what_was_left_out_counted_apart(spool: Spool) -> None:
    put(spool, "exit.json", {**EXIT, "detail": "d\ud800", "cause": "timed_out", "proof": "empty_cgroup"})
    assert spool.exit_report("r") == RunReport(
        run_id="r",
        outcome=ReportOutcome.TIMED_OUT,
        cause=ExitCause.TIMED_OUT,
        detail="d?",
        exit_code=0,
        signal=None,
        started_at=1.5,
        finished_at=2.5,
        proof=ProofKind.EMPTY_CGROUP,
        output_bytes=9,
        dropped_bytes=3,
    )


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"exit_code": 255}, "exit_code", 255),
        ({"exit_code": None, "signal": 127}, "signal", 127),
        ({"exit_code": None, "signal": 0}, "signal", 0),
        ({"started_at": None}, "started_at", None),
        ({"started_at": 0}, "started_at", 0.0),
        ({"finished_at": 253_402_300_799}, "finished_at", 253_402_300_799.0),
        ({"dropped_stdout": 100}, "output_bytes", 0),
        ({"stdout_bytes": 2**62 - 1}, "output_bytes", 2**62 + 1),
    ],
)
def test_an_exit_record_may_say_what_can_be(spool: Spool, changes: dict[str, Any], field: str, value: object) -> None:
    put(spool, "exit.json", {**EXIT, **changes})
    assert getattr(spool.exit_report("r"), field) == value


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_code": 256},
        {"exit_code": -1},
        {"exit_code": True},
        {"exit_code": 1.0},
        {"signal": 128},
        {"signal": -1},
        {"finished_at": None},
        {"finished_at": -1},
        {"finished_at": True},
        {"finished_at": "2.5"},
        {"finished_at": 253_402_300_800},
        {"finished_at": float("nan")},
        {"proof": "my word"},
        {"cause": "unheard of"},
        {"stdout_bytes": -1},
        {"stdout_bytes": 2**62},
        {"dropped_stderr": None},
        *({name: "MISSING"} for name in EXIT if name not in ("format", "started_at")),
    ],
)
def test_an_exit_record_that_says_what_cannot_be_is_none(spool: Spool, changes: dict[str, Any]) -> None:
    record = {key: value for key, value in {**EXIT, **changes}.items() if value != "MISSING"}
    put(spool, "exit.json", record)
    assert spool.exit_report("r") is None


def test_a_run_waits_to_be_started_in_its_own_boot_until_its_time_is_over_or_somebody_has_it(spool: Spool) -> None:
    create(spool, spec_of(ends_by=50.0))
    assert spool.is_waiting("r", boot_id=BOOT, elapsed=49.9)
    assert not spool.is_waiting("r", boot_id=BOOT, elapsed=50.0)
    assert not spool.is_waiting("r", boot_id="another", elapsed=0.0)
    assert not spool.is_waiting("gone", boot_id=BOOT, elapsed=0.0)
    assert spool.claim_for_agent("r")
    assert not spool.is_waiting("r", boot_id=BOOT, elapsed=0.0)
    assert not spool.claim_for_agent("r")


def test_a_run_without_an_end_waits_for_ever_and_one_with_an_unreadable_end_does_not(spool: Spool) -> None:
    create(spool)
    assert spool.is_waiting("r", boot_id=BOOT, elapsed=1e9)
    for record in ({"ends_by": "soon"}, {"ends_by": True}, {"ends_by": None, "deadline_at": 1.0}):
        put(spool, "spec.json", {"boot_id": BOOT, **record})
        assert not spool.is_waiting("r", boot_id=BOOT, elapsed=0.0)


def test_a_run_is_asked_to_end_once_and_the_first_request_stands(spool: Spool) -> None:
    directory = create(spool)
    spool.request_cancel("r", reason=CancelReason.TIMEOUT, grace=3.0)
    spool.request_cancel("r", reason=CancelReason.CANCEL, grace=9.0)
    record = json.loads((directory / "cancel.json").read_text())
    assert (record["reason"], record["grace"], record["at"] > 1e9) == ("timeout", 3.0, True)


def test_an_end_that_the_agent_records_takes_the_input_away_and_the_reserve(spool: Spool) -> None:
    directory = create(spool, spec_of(stdin=b"secret"))
    report = RunReport(
        run_id="r",
        outcome=ReportOutcome.CANCELLED,
        cause=ExitCause.CANCELLED,
        detail="d",
        exit_code=3,
        signal=9,
        started_at=1.0,
        finished_at=2.5,
        proof=ProofKind.NEVER_STARTED,
        output_bytes=700,
        dropped_bytes=300,
    )
    spool.write_exit(report)
    assert spool.exit_report("r") == report
    assert not (directory / "input.json").exists()
    assert not (directory / "exit.reserve").exists()


def test_a_run_that_is_removed_is_gone_at_one_stroke(spool: Spool) -> None:
    create(spool, spec_of("kept"))
    create(spool)
    spool.remove("r")
    spool.remove("never there")
    assert [entry.name for entry in spool.runs.iterdir()] == ["kept"]


def test_deletions_that_were_cut_short_are_finished_and_nothing_else_is_deleted(spool: Spool) -> None:
    create(spool)
    (spool.runs / ".removed.x").mkdir()
    (spool.runs / ".removed.x" / "output").write_text("")
    (spool.runs / "other.removed.").mkdir()
    spool.sweep_removed()
    assert sorted(entry.name for entry in spool.runs.iterdir()) == ["other.removed.", "r"]
