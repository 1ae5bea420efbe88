"""The spool: one directory per run, created exclusively, which is what makes a run happen at most once.

Everything here blocks and belongs in a worker thread. The layout is described in ``spool_files``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from shovey_agent.run.runs import CancelReason, ExitCause, KnownRun, RunPhase, RunSpec
from shovey_agent.supervisor.redact import patterns_of
from shovey_agent.supervisor.spool_files import (
    CANCEL,
    EXIT,
    EXIT_RESERVE,
    INPUT,
    ORDER,
    OUTPUT,
    REPORTED,
    RESERVED_BYTES,
    SPEC,
    STARTED,
    SUPERVISOR,
    RecordUnreadable,
    claim_record,
    drop_input,
    encode_input,
    encode_record,
    read_record,
    sync_directory,
    write_exit,
    write_file,
)
from shovey_trio.core.jobs.events import RunReport
from shovey_trio.core.jobs.model import ProofKind
from shovey_trio.observe import failpoints

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Directory and records of a run, in blocks of 4 KiB: order, spec, exit, supervisor, started, reported.
_RUN_COST = 28 * 1024
# Seconds since 1970: the year 10000.
_NO_TIME = 253_402_300_800
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Where commands are looked for, unless their entry says otherwise.
COMMAND_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SpoolError(Exception):
    """The spool could not take the run; nothing of it is left."""

    reason: ClassVar[str] = "SPOOL_ERROR"


class SpoolFull(SpoolError):
    """There is no room for another run: disk, quota, or the floor of free space that the settings demand."""

    reason: ClassVar[str] = "SPOOL_FULL"


class RunExists(Exception):
    """The run's directory is there already."""

    reason: ClassVar[str] = "RUN_EXISTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """Attributes:
    head_cap: bytes of log kept from the beginning of a run's output.
    tail_cap: bytes kept from its end, in the supervisor's memory until then.
    min_free: bytes that must be free on the file system for a run to be taken.
    total_cap: bytes that all runs together may have in the spool for another one to be taken. Those that are being
        written may go beyond it, each up to its own caps.
    max_processes: how many processes and threads a run may have whose entry does not say.
    """

    head_cap: int = 256 * 1024 * 1024
    tail_cap: int = 1024 * 1024
    min_free: int = 16 * 1024 * 1024
    total_cap: int = 1024 * 1024 * 1024
    max_processes: int = 2048


class Spool:
    """The runs of one state directory."""

    def __init__(self, state_dir: Path, limits: SpoolLimits) -> None:
        self.runs = state_dir / "runs"
        self._limits = limits

    def prepare(self) -> None:
        """Makes the directory, 0700.

        Raises:
            OSError: it cannot be made.
        """
        self.runs.mkdir(mode=0o700, parents=True, exist_ok=True)

    def directory(self, run_id: str) -> str:
        return str(self.runs / run_id)

    def create(self, spec: RunSpec, *, accepted_at: float, boot_id: str, cgroup: str | None) -> None:
        """Makes a run durable, ready to be started.

        Raises:
            RunExists: it is there already, whole or not; untouched.
            SpoolFull: no room.
            SpoolError: the disk failed.
        """
        directory = self.directory(spec.run_id)
        try:
            failpoints.passing("spool.create.before")
            os.mkdir(directory, 0o700)
        except FileExistsError:
            raise RunExists(spec.run_id) from None
        except OSError as error:
            raise _spool_error(error) from error
        try:
            self._demand_room()
            reserve = os.path.join(directory, EXIT_RESERVE)
            write_file(reserve, b"\0" * RESERVED_BYTES, durable=True)
            write_file(os.path.join(directory, ORDER), spec.order + spec.signature, durable=True)
            record = self._record(spec, accepted_at=accepted_at, boot_id=boot_id, cgroup=cgroup)
            write_file(os.path.join(directory, OUTPUT), b"", durable=False)
            if spec.stdin or spec.secrets:
                write_file(os.path.join(directory, INPUT), _input(spec), durable=True)
            # Last, under its own name at once: without it the run was never ready to start.
            write_file(os.path.join(directory, SPEC), encode_record(record), durable=True)
            sync_directory(directory)
            sync_directory(str(self.runs))
            failpoints.passing("spool.create.after")
        except (OSError, SpoolError) as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise (error if isinstance(error, SpoolError) else _spool_error(error)) from error

    def run_ids(self) -> Iterator[str]:
        """Yields the names that can be runs, oldest name first; anything else in there is not ours."""
        for entry in sorted(os.scandir(self.runs), key=lambda entry: entry.name):
            if is_run_id(entry.name) and entry.is_dir(follow_symlinks=False):
                yield entry.name

    def load(self, run_id: str) -> KnownRun | None:
        """Returns what the files say, believing only what is whole, or None when there is no such run.

        A run without a readable spec was never started. It is still a run: its name is taken.
        """
        directory = self.directory(run_id)
        if not os.path.isdir(directory):
            return None
        spec = _read(directory, SPEC) or {}
        started = _read(directory, STARTED)
        started_at = None if started is None else _number(started, "at")
        report = self.exit_report(run_id)
        phase = RunPhase.ACCEPTED if started is None else RunPhase.RUNNING
        return KnownRun(
            run_id=run_id,
            job_id=_words(str(spec.get("job_id", ""))),
            epoch=_epoch(spec),
            accepted_at=_number(spec, "accepted_at") or os.stat(directory).st_mtime,
            command=_words(str(spec.get("command", ""))),
            lock=str(spec.get("lock", "")),
            phase=phase if report is None else RunPhase.FINISHED,
            started_at=started_at if report is None else report.started_at,
            cancelling=os.path.exists(os.path.join(directory, CANCEL)),
            exit=report,
            reported=os.path.exists(os.path.join(directory, REPORTED)),
        )

    def exit_report(self, run_id: str) -> RunReport | None:
        """Returns how the run ended, or None when there is no whole record of it."""
        record = _read(self.directory(run_id), EXIT)
        if record is None:
            return None
        try:
            proof = record["proof"]
            cause = ExitCause(record["cause"])
            dropped = _whole(record, "dropped_stdout") + _whole(record, "dropped_stderr")
            return RunReport(
                run_id=run_id,
                outcome=cause.outcome,
                cause=cause,
                detail=_words(str(record["detail"])),
                exit_code=None if record["exit_code"] is None else _whole(record, "exit_code", below=256),
                signal=None if record["signal"] is None else _whole(record, "signal", below=128),
                started_at=_number(record, "started_at"),
                finished_at=_time(record, "finished_at"),
                proof=None if proof is None else ProofKind(proof),
                # The record counts what was left out among the bytes of the streams.
                output_bytes=max(0, _whole(record, "stdout_bytes") + _whole(record, "stderr_bytes") - dropped),
                dropped_bytes=dropped,
            )
        except (KeyError, TypeError, ValueError):
            return None

    def is_waiting(self, run_id: str, *, boot_id: str, elapsed: float) -> bool:
        """Whether a run was made durable, nobody has claimed it, and it may still be started.

        Not in another boot, where the order of things is lost, and not when its time is over. Starting it is safe
        whatever else happens: a supervisor claims the run exclusively before it starts anything.

        Raises:
            OSError: it cannot be told.
        """
        directory = self.directory(run_id)
        spec = _read(directory, SPEC)
        if spec is None or spec.get("boot_id") != boot_id or os.path.exists(os.path.join(directory, SUPERVISOR)):
            return False
        if spec.get("ends_by") is None:
            return "deadline_at" not in spec  # by a wall clock, of an agent up to 0.1: nobody knows when that is
        ends_by = _number(spec, "ends_by")
        return ends_by is not None and elapsed < ends_by

    def claim_for_agent(self, run_id: str) -> bool:
        """Takes the run from any supervisor that has not claimed it yet; returns whether that was in time."""
        return claim_record(self.directory(run_id), SUPERVISOR, {"pid": None}, durable=True)

    def write_exit(self, report: RunReport) -> None:
        """Records an end on behalf of a supervisor that cannot.

        Raises:
            OSError: the disk failed.
        """
        with contextlib.suppress(OSError):  # the record of the end matters more; the input goes with the directory
            drop_input(self.directory(report.run_id))
        write_exit(
            self.directory(report.run_id),
            {
                "cause": report.cause,
                "detail": report.detail,
                "exit_code": report.exit_code,
                "signal": report.signal,
                "started_at": report.started_at,
                "finished_at": report.finished_at,
                "proof": report.proof,
                # Only the sums are read: nobody knows any more which stream what is missing was of.
                "stdout_bytes": report.output_bytes + report.dropped_bytes,
                "stderr_bytes": 0,
                "dropped_stdout": report.dropped_bytes,
                "dropped_stderr": 0,
            },
        )

    def request_cancel(self, run_id: str, *, reason: CancelReason, grace: float) -> None:
        """Makes the request durable. A run is asked once: the first request stands.

        Raises:
            OSError: the disk failed; nothing was requested.
        """
        record = {"reason": str(reason), "grace": grace, "at": time.time()}
        claim_record(self.directory(run_id), CANCEL, record, durable=True)

    def mark_reported(self, run_id: str) -> None:
        """Notes that the controller has the report.

        Raises:
            OSError: the disk failed.
        """
        write_file(os.path.join(self.directory(run_id), REPORTED), b"", durable=True)

    def remove(self, run_id: str) -> None:
        """Deletes a run. What cannot be deleted is found again, still reported, at the next start."""
        directory = self.directory(run_id)
        # The directory itself goes last and at one stroke, so that no half-deleted run is ever taken for a lost one.
        doomed = str(self.runs / f".removed.{run_id}")
        with contextlib.suppress(OSError):
            os.rename(directory, doomed)
            failpoints.passing("spool.remove.named")
            shutil.rmtree(doomed)

    def sweep_removed(self) -> None:
        """Finishes deletions that were cut short."""
        for entry in os.scandir(self.runs):
            if entry.name.startswith(".removed."):
                shutil.rmtree(entry.path, ignore_errors=True)

    def used_bytes(self) -> int:
        """Returns what all runs occupy: their output, and the few blocks that every run costs."""
        used = 0
        for run_id in self.run_ids():
            used += _RUN_COST
            with contextlib.suppress(OSError):
                used += os.stat(os.path.join(self.directory(run_id), OUTPUT)).st_size
        return used

    def _demand_room(self) -> None:
        stat = os.statvfs(self.runs)
        if stat.f_bavail * stat.f_frsize < self._limits.min_free:
            raise SpoolFull(f"less than {self._limits.min_free} bytes are free")
        # The run that is being made has its directory already.
        if (used := self.used_bytes() - _RUN_COST) >= self._limits.total_cap:
            raise SpoolFull(f"{used} bytes of runs wait to be reported; the spool's cap is {self._limits.total_cap}")

    def _record(self, spec: RunSpec, *, accepted_at: float, boot_id: str, cgroup: str | None) -> dict[str, Any]:
        return {
            "run_id": spec.run_id,
            "job_id": spec.job_id,
            "epoch": spec.epoch,
            "command": spec.command,
            "argv": list(spec.argv),
            "cwd": spec.cwd,
            "env": command_environment(spec),
            "umask": spec.umask,
            "nice": spec.nice,
            "limits": {key: limit for key, limit in asdict(spec.limits).items() if limit is not None},
            "max_processes": self._limits.max_processes,
            "account": None if spec.account is None else [spec.account.uid, spec.account.gid, *spec.account.groups],
            "lock": spec.lock,
            "timeout": spec.timeout,
            "ends_by": spec.ends_by,
            "grace": spec.grace,
            "head_cap": spec.output_cap or self._limits.head_cap,
            "tail_cap": self._limits.tail_cap,
            "boot_id": boot_id,
            "accepted_at": accepted_at,
            "cgroup": cgroup,
        }


def _epoch(spec: dict[str, Any]) -> int:
    """Of the order; 0 of a run that an older agent has taken."""
    found = spec.get("epoch", 0)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def _input(spec: RunSpec) -> bytes:
    secret = [value.encode("utf-8", "surrogateescape") for value in spec.secrets.env.values()]
    patterns = patterns_of([*secret, spec.secrets.stdin])
    return encode_input(stdin=spec.stdin, env=dict(spec.secrets.env), redact=patterns)


def is_run_id(name: str) -> bool:
    """Returns whether a name can be a run's; such a name is also safe as a directory's."""
    return _RUN_ID.fullmatch(name) is not None


def command_environment(spec: RunSpec) -> Mapping[str, str]:
    """Returns the whole environment of a command: nothing of the agent's own reaches it."""
    if spec.account is not None:
        home, user = spec.account.home, spec.account.name
    else:
        try:
            account = pwd.getpwuid(os.geteuid())
            home, user = account.pw_dir, account.pw_name
        except KeyError:
            home, user = "/", str(os.geteuid())
    return {
        "PATH": COMMAND_PATH,
        "LANG": "C.UTF-8",
        "HOME": home,
        "USER": user,
        **spec.env,
        "SHOVEY_JOB_ID": spec.job_id,
        "SHOVEY_RUN_ID": spec.run_id,
        "SHOVEY_NODE": spec.node,
    }


def _spool_error(error: OSError) -> SpoolError:
    kind = SpoolFull if error.errno in _FULL else SpoolError
    return kind(error.strerror or str(error))


def _read(directory: str, name: str) -> dict[str, Any] | None:
    """Reads a record for a reader to whom a damaged one is as good as none."""
    try:
        return read_record(directory, name)
    except RecordUnreadable:
        return None


def _number(record: dict[str, Any], key: str) -> float | None:
    """A time, or None when there is none that a clock can have shown."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Not by isfinite alone: JSON has whole numbers that no double holds.
    return float(value) if 0 <= value < _NO_TIME else None


def _time(record: dict[str, Any], key: str) -> float:
    value = _number(record, key)
    if value is None:
        raise ValueError(key)
    return value


def _whole(record: dict[str, Any], key: str, *, below: int = 2**62) -> int:
    value = record[key]
    if type(value) is not int or not 0 <= value < below:
        raise ValueError(key)
    return value


def _words(text: str) -> str:
    """What can be told: half a surrogate pair, which JSON can hold, is in no message."""
    return text.encode("utf-8", "replace").decode()
