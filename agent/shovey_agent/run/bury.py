"""Ending a run whose supervisor cannot: it was killed, it never came up, or the machine restarted.

Everything here blocks and belongs in a worker thread.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any, ClassVar

from shovey_agent.run.output_reader import OutputReader
from shovey_agent.run.runs import ExitCause
from shovey_agent.run.spool import Spool
from shovey_agent.supervisor.cgroup import RunCgroup
from shovey_agent.supervisor.proc_posix import (
    ProcessStat,
    all_processes,
    boot_id,
    descendants,
    open_process,
    read_stat,
    signal_process,
)
from shovey_agent.supervisor.spool_files import OUTPUT, SPEC, STARTED, SUPERVISOR, SWEPT, RecordUnreadable, read_record
from shovey_trio.core.jobs.events import RunReport
from shovey_trio.core.jobs.model import ProofKind

_KILL_PATIENCE_S = 5.0
_PASS_INTERVAL_S = 0.02


class StillSupervised(Exception):
    """The run has a living supervisor: it is to be followed, not buried."""

    reason: ClassVar[str] = "STILL_SUPERVISED"


def find_supervisor(spool: Spool, run_id: str) -> int | None:
    """Returns a pidfd of the run's living supervisor, or None. The caller closes it.

    Raises:
        OSError: it cannot be told.
    """
    claim = _read(spool.directory(run_id), SUPERVISOR)
    return _open_claimed(claim, claim)


def find_guardian(spool: Spool, run_id: str) -> int | None:
    """Returns a pidfd of the living guardian of the run's supervisor, or None. The caller closes it.

    Raises:
        OSError: it cannot be told.
    """
    claim = _read(spool.directory(run_id), SUPERVISOR)
    return _open_claimed(claim, _guardian_of(claim))


def _open_claimed(claim: dict[str, Any], process: dict[str, Any]) -> int | None:
    pid, start_time = process.get("pid"), process.get("start_time")
    if not isinstance(pid, int) or not isinstance(start_time, int) or claim.get("boot_id") != boot_id():
        return None
    return open_process(pid, start_time)


def _guardian_of(claim: dict[str, Any]) -> dict[str, Any]:
    guardian = claim.get("guardian")
    return guardian if isinstance(guardian, dict) else {}


def abandon_run(spool: Spool, run_id: str) -> RunReport:
    """Ends a run that the agent cannot follow: its supervisor first, its guardian ends the rest, then what is left.

    Raises:
        OSError: the record could not be written.
    """
    guardian = find_guardian(spool, run_id)
    _end_process(find_supervisor(spool, run_id), signal.SIGKILL)
    _end_process(guardian, signal.SIGCONT)
    return spool.exit_report(run_id) or bury_run(spool, run_id)


def _end_process(pidfd: int | None, signum: int) -> None:
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signum)
        select.select([pidfd], [], [], _KILL_PATIENCE_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def bury_run(spool: Spool, run_id: str) -> RunReport:
    """Makes sure that nothing of the run is alive, as far as that can be seen, and records its end.

    A supervisor that is still on its way up finds the run taken. One that ended properly in the meantime has the word.

    Raises:
        StillSupervised: a supervisor came up in the meantime; nothing was done.
        OSError: the record could not be written.
    """
    never_started = spool.claim_for_agent(run_id)
    if not never_started:
        pidfd = find_supervisor(spool, run_id)
        if pidfd is not None:
            os.close(pidfd)
            raise StillSupervised(run_id)
        report = spool.exit_report(run_id)
        if report is not None:
            return report
    directory = spool.directory(run_id)
    spec = _read(directory, SPEC)
    claim = _read(directory, SUPERVISOR)
    booted = boot_id()
    never_started = never_started or ("pid" in claim and claim["pid"] is None)
    rebooted = claim.get("boot_id", spec.get("boot_id", booted)) != booted
    proof = ProofKind.NEVER_STARTED if never_started else None
    detail = "never started" if never_started else ""
    cause = ExitCause.NODE_REBOOTED if rebooted else ExitCause.SUPERVISOR_LOST
    swept = _swept(directory)
    if swept is not None:
        cause, detail, proof = swept
    elif not rebooted and not never_started:
        alive = _kill_strays(run_id, _read(directory, STARTED), _guardian_of(claim))
        group = RunCgroup(spec["cgroup"], run_id) if spec.get("cgroup") else None
        if group is not None:
            proof = _end_cgroup(group)
        detail = f"the supervisor is gone; still alive: {alive}" if alive else "the supervisor is gone"
    known = spool.load(run_id)
    end = OutputReader(os.path.join(directory, OUTPUT)).end()
    report = RunReport(
        run_id=run_id,
        outcome=cause.outcome,
        cause=cause,
        detail=detail,
        started_at=None if known is None else known.started_at,
        finished_at=time.time(),
        proof=proof,
        output_bytes=end.position,
        dropped_bytes=end.dropped_bytes,
    )
    spool.write_exit(report)
    return report


def _swept(directory: str) -> tuple[ExitCause, str, ProofKind] | None:
    """What the guardian says of a run whose supervisor was killed, and nothing of which is left."""
    record = _read(directory, SWEPT)
    try:
        return ExitCause(record["cause"]), str(record["detail"]), ProofKind(record["proof"])
    except (KeyError, ValueError):
        return None


def _kill_strays(run_id: str, started: dict[str, Any], guardian: dict[str, Any]) -> list[int]:
    """Kills what can be recognised as the run's, then its guardian; returns the pids that are left."""
    give_up_at = time.monotonic() + _KILL_PATIENCE_S
    while strays := _find_strays(run_id, started, guardian):
        if time.monotonic() > give_up_at:
            return sorted(stray.pid for stray in strays)
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            for stray in strays:
                signal_process(stray, signum)
        time.sleep(_PASS_INTERVAL_S)
    # One that is still there was held by somebody. Not before its tree is gone: that would lose sight of it.
    stuck = read_stat(guardian.get("pid", 0))
    if stuck is not None and stuck.start_time == guardian.get("start_time"):
        signal_process(stuck, signal.SIGKILL)
    return []


def _find_strays(run_id: str, started: dict[str, Any], guardian: dict[str, Any]) -> list[ProcessStat]:
    """Finds the run's processes among all of this machine's.

    Four marks: the run id in the environment; the leader itself; all below the guardian; and the session and
    descendants of any of these. A session's number alone proves nothing, because it may be somebody else's by now.
    """
    processes = {stat.pid: stat for stat in all_processes() if not stat.is_dead}
    marker = b"SHOVEY_RUN_ID=" + run_id.encode("ascii")
    found = {pid for pid in processes if marker in _environment(pid)}
    leader = processes.get(started.get("pid", 0))
    if leader is not None and leader.start_time == started.get("start_time"):
        found.add(leader.pid)
    above = processes.get(guardian.get("pid", 0))
    if above is not None and above.start_time == guardian.get("start_time"):
        found |= {stat.pid for stat in descendants({above.pid}) if stat.pid in processes}
    sessions = {processes[pid].session for pid in found}
    found |= {stat.pid for stat in processes.values() if stat.session in sessions}
    found |= {stat.pid for stat in descendants(set(found))}
    # A job may have started this very agent, which then carries the job's environment.
    found -= _own_line()
    return [processes[pid] for pid in found if pid in processes]


def _own_line() -> set[int]:
    """Returns this process, its ancestors and its descendants."""
    line = {os.getpid(), *(stat.pid for stat in descendants({os.getpid()}))}
    stat = read_stat(os.getpid())
    while stat is not None and stat.parent > 0:
        line.add(stat.parent)
        stat = read_stat(stat.parent)
    return line


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _end_cgroup(group: RunCgroup) -> ProofKind | None:
    give_up_at = time.monotonic() + _KILL_PATIENCE_S
    while not group.is_empty():
        if time.monotonic() > give_up_at or not os.path.isdir(group.path):
            return None
        group.kill()
        time.sleep(_PASS_INTERVAL_S)
    group.remove()
    return ProofKind.EMPTY_CGROUP


def _read(directory: str, name: str) -> dict[str, Any]:
    try:
        return read_record(directory, name) or {}
    except RecordUnreadable:
        return {}
