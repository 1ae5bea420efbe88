"""The supervisor: one small process per run that owns the command from fork to exit record.

It outlives the agent. It has a session of its own, takes orders only from files in the spool directory (a signal says
that there is one), and needs nobody to read what it writes. Its own end is the news that the run is over: whoever
follows the run waits on a pidfd of this process and then reads ``exit.json``.

The rules it keeps:

* Whoever creates ``supervisor.json`` owns the run. If it is there already the command is not started, ever.
* The leader's exit ends the run. What the leader left in the background lives on, and does not keep the run open.
* Cancel and timeout end the whole tree: SIGTERM, grace, SIGKILL. The first of exit, cancel and deadline to be seen is
  the cause. ``cancelled`` and ``timed_out`` are written only with proof that nothing of the tree is left.
* Whatever it is stopped, traced or killed by, its guardian ends the run in its place (``guardian``).
* Nobody who reads the output can slow the command down; a full disk cannot either.

Runs in a process forked from ``zygote``: the standard library's small modules alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import time

from shovey_agent.supervisor.cgroup import RunCgroup
from shovey_agent.supervisor.command import SpawnFailed, spawn
from shovey_agent.supervisor.output_log import OutputLog
from shovey_agent.supervisor.proc_posix import become_subreaper, boot_id, elapsed_clock, read_stat
from shovey_agent.supervisor.process_tree import (
    KILL_PATIENCE_S,
    REAPS_PER_TURN,
    kill_tree,
    survivors,
    terminate_tree,
)
from shovey_agent.supervisor.redact import Redactor
from shovey_agent.supervisor.spool_files import (
    CANCEL,
    OUTPUT,
    SPEC,
    STARTED,
    SUPERVISOR,
    RecordUnreadable,
    claim_record,
    drop_input,
    read_record,
    take_input,
    write_all,
    write_exit,
    write_record,
)
from shovey_trio.core.jobs.output_frames import MAX_BODY, STDERR, STDOUT
from shovey_trio.observe import failpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# How long output may still come after the leader has gone: enough for `>(tee log)`, not for a daemon.
LINGER_S = 0.2
# Between two sweeps over a tree that is dying.
_SWEEP_INTERVAL_S = 0.02
# poll() does not count time spent in suspend, the deadline does.
_LONGEST_POLL_S = 30.0
# A burst is taken in few wake-ups; the kernel's limit for unprivileged users is larger than this.
_PIPE_BYTES = 256 * 1024
_READS_PER_WAKE = 16
_RLIMITS = {
    "cpu_seconds": resource.RLIMIT_CPU,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}


def supervise(directory: str, announce: Callable[[bytes], None]) -> None:
    """Runs the command of a spool directory to its end.

    Args:
        directory: holds a complete ``spec.json``.
        announce: called with ``b"ready"`` when a cancel signal would be heeded, with ``b"started"`` when the command
            runs. It must not raise.

    Raises:
        RecordUnreadable, OSError: the directory is not one to work with. Nothing was started.
    """
    spec = read_record(directory, SPEC)
    if spec is None:
        return
    supervisor = _Supervisor(directory, spec)
    announce(b"ready")
    own, above = read_stat(os.getpid()), read_stat(os.getppid())
    assert own is not None
    guardian = {} if above is None else {"pid": above.pid, "start_time": above.start_time}
    claim = {"pid": own.pid, "start_time": own.start_time, "boot_id": boot_id(), "guardian": guardian}
    if not claim_record(directory, SUPERVISOR, claim):
        return
    try:
        supervisor.run(announce)
    except Exception as error:  # noqa: BLE001 -- a bug here must not leave a command that nobody owns
        supervisor.give_up(f"internal error: {error!r}")


class _Supervisor:
    def __init__(self, directory: str, spec: dict[str, Any]) -> None:
        self._directory = directory
        self._spec = spec
        self._cgroup: RunCgroup | None = None
        self._leader: int | None = None
        self._leader_status: int | None = None
        self._childless = True
        self._more_dead = False
        self._cancel_asked = True  # a request may have come before this process
        self._started_at: float | None = None
        self._pipes: dict[int, int] = {}
        self._redactors: dict[int, Redactor] = {}
        self._poll = select.poll()
        output = os.path.join(directory, OUTPUT)
        self._log = OutputLog(
            os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600),
            head_cap=spec["head_cap"],
            tail_cap=spec["tail_cap"],
        )
        self._wake = self._listen()

    def run(self, announce: Callable[[bytes], None]) -> None:
        become_subreaper()
        deadline = elapsed_clock() + time_allowed(self._spec)
        if (request := self._cancel_request()) is not None:
            drop_input(self._directory)
            self._record(*ending(request), proof="never_started")
            return
        try:
            self._start()
        except (SpawnFailed, RecordUnreadable, OSError) as error:
            detail = error.detail if isinstance(error, SpawnFailed) else f"set-up: {error}"
            self._record("spawn_failed", detail=detail, proof="never_started")
            return
        announce(b"started")
        cause = self._watch(deadline)
        if cause is None:
            self._drain()
            status = self._leader_status
            assert status is not None
            self._record("signalled" if os.WIFSIGNALED(status) else "exited")
        else:
            self._end_tree(*cause)

    def give_up(self, detail: str) -> None:
        """Kills what there is and says that the outcome is not known."""
        self._kill_now()
        self._record("supervisor_lost", detail=detail)

    # -- starting

    def _listen(self) -> int:
        """Makes signals wake the poll, and makes none of them end this process."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def on_cancel(_signum: int, _frame: object) -> None:
            self._cancel_asked = True

        signal.signal(signal.SIGUSR1, on_cancel)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        # Whoever stops the service or logs out addresses the command, which gets these signals itself.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        self._poll.register(reader, select.POLLIN)
        return reader

    def _start(self) -> None:
        spec = self._spec
        stdin, secret_env, secrets = take_input(self._directory)
        if spec["cgroup"] is not None:
            self._cgroup = RunCgroup(spec["cgroup"], spec["run_id"])
            self._cgroup.create()
        account = spec.get("account")
        rlimits = self._limits()
        source = _readable(stdin) if stdin else None
        ends = []
        for kind in (STDOUT, STDERR):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            if account is not None:
                # Or a command could not open /dev/stdout, which is this pipe by another name.
                os.fchown(writer, account[0], account[1])
            self._pipes[reader] = kind
            self._redactors[kind] = Redactor(secrets)
            self._poll.register(reader, select.POLLIN)
            ends.append(writer)
        failpoints.passing("supervisor.spawn.before")
        try:
            command = {
                **spec,
                "env": {**spec["env"], **secret_env},
                "cgroup_procs": None if self._cgroup is None else self._cgroup.procs,
                "rlimits": rlimits,
            }
            self._leader = spawn(command, (source, ends[0], ends[1]))
        finally:
            for writer in (*ends, *(() if source is None else (source,))):
                os.close(writer)
        self._childless = False
        failpoints.passing("supervisor.spawn.after")
        self._started_at = time.time()
        stat = read_stat(self._leader)
        start_time = None if stat is None else stat.start_time
        record = {"pid": self._leader, "start_time": start_time, "at": self._started_at}
        # Only a convenience for an agent that comes later: a full disk must not end a command that runs already.
        with contextlib.suppress(OSError):
            write_record(self._directory, STARTED, record, durable=False)

    def _limits(self) -> dict[int, int]:
        """What the command's own limits are to be; memory and processes are the cgroup's to limit where it can."""
        wanted: dict[str, int] = dict(self._spec.get("limits", {}))
        most = wanted.get("processes", self._spec.get("max_processes"))
        if most is not None and self._cgroup is not None and self._cgroup.limit_processes(most):
            wanted.pop("processes", None)
        elif most is not None and self._spec.get("account") is not None:
            # Only an account of the commands' own: it is counted with all else that the account has, threads too.
            wanted["processes"] = most
        rlimits = {_RLIMITS[name]: most for name, most in wanted.items() if name in _RLIMITS}
        memory = wanted.get("memory")
        if memory is not None and not (self._cgroup is not None and self._cgroup.limit_memory(memory)):
            rlimits[resource.RLIMIT_AS] = memory
        return rlimits

    # -- watching

    def _watch(self, deadline: float) -> tuple[str, str, float] | None:
        """Pumps output until the leader exits (None), or until it has to be ended: cause, detail, grace."""
        while True:
            self._reap()
            if self._leader_status is not None:
                return None
            if (request := self._cancel_request()) is not None:
                return (*ending(request), float(request["grace"]))
            left = deadline - elapsed_clock()
            if left <= 0:
                return ("timed_out", "the node's deadline passed", float(self._spec["grace"]))
            self._pump(left)

    def _end_tree(self, cause: str, detail: str, grace: float) -> None:
        assert self._leader is not None
        terminate_tree(self._leader)
        kill_at = elapsed_clock() + grace
        while not self._is_gone() and (left := kill_at - elapsed_clock()) > 0:
            self._pump(left)
        proven = self._is_gone() or self._kill_now()
        self._drain()
        if proven:
            proof = "empty_subreaper" if self._cgroup is None else "empty_cgroup"
            self._record(cause, detail=detail, proof=proof)
        else:
            self._record("supervisor_lost", detail=f"{cause}, but still alive: {survivors()}")

    def _kill_now(self) -> bool:
        """Kills the tree without grace; returns whether it is shown to be gone."""
        give_up_at = elapsed_clock() + KILL_PATIENCE_S
        while not self._is_gone():
            if elapsed_clock() > give_up_at:
                return False
            if self._cgroup is not None:
                self._cgroup.kill()
            kill_tree(self._leader if self._leader_status is None else None, self._reap)
            self._reap()
            if not self._is_gone():
                self._pump(_SWEEP_INTERVAL_S)
        return True

    def _is_gone(self) -> bool:
        self._reap()
        return self._childless and (self._cgroup is None or self._cgroup.is_empty())

    def _reap(self) -> list[int] | None:
        """Waits for some of the dead: the leader, and the orphans that a subreaper inherits. None: no children."""
        reaped: list[int] = []
        while not self._childless and len(reaped) < REAPS_PER_TURN:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                break
            if pid == 0:
                break
            reaped.append(pid)
            if pid == self._leader:
                self._leader_status = status
        self._more_dead = len(reaped) == REAPS_PER_TURN
        return None if self._childless else reaped

    def _cancel_request(self) -> dict[str, Any] | None:
        if not self._cancel_asked:
            return None
        self._cancel_asked = False
        try:
            return read_record(self._directory, CANCEL)
        except RecordUnreadable:
            # Somebody asked; that the reason cannot be read is no ground to go on.
            return {"reason": "cancel", "grace": self._spec["grace"]}

    # -- output

    def _pump(self, longest: float) -> None:
        """Waits for output or a signal, at most so many seconds, and takes what there is."""
        milliseconds = 0 if self._more_dead else int(min(max(longest, 0.0), _LONGEST_POLL_S) * 1000) + 1
        for descriptor, _ in self._poll.poll(milliseconds):
            if descriptor == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(descriptor, 4096)
            else:
                self._take(descriptor)

    def _take(self, descriptor: int) -> None:
        for _ in range(_READS_PER_WAKE):
            try:
                data = os.read(descriptor, MAX_BODY)
            except BlockingIOError:
                return
            if not data:
                self._poll.unregister(descriptor)
                os.close(descriptor)
                self._keep(self._pipes[descriptor], b"", last=True)
                del self._pipes[descriptor]
                return
            self._keep(self._pipes[descriptor], data)
            if len(data) < MAX_BODY:
                return

    def _keep(self, kind: int, data: bytes, *, last: bool = False) -> None:
        """Puts into the log what may be shown of a piece."""
        redactor = self._redactors[kind]
        shown = redactor.feed(data) + (redactor.flush() if last else b"")
        # Marks may be longer than what they stand for.
        for start in range(0, len(shown), MAX_BODY):
            self._log.append(kind, shown[start : start + MAX_BODY], time.time())

    def _drain(self) -> None:
        """Takes what the leader left in the pipes, and what comes while others still hold them, for a moment."""
        linger_until = elapsed_clock() + LINGER_S
        while self._pipes and (left := linger_until - elapsed_clock()) > 0:
            self._pump(left)
        for descriptor in tuple(self._pipes):
            # Nothing the leader wrote may be lost to a slow disk having used the time up.
            self._take(descriptor)

    # -- ending

    def _record(self, cause: str, detail: str = "", proof: str | None = None) -> None:
        for kind in self._redactors:
            self._keep(kind, b"", last=True)
        finished_at = time.time()
        log = self._log
        log.finish(finished_at)
        status = self._leader_status
        exited = status is not None and os.WIFEXITED(status)
        signalled = status is not None and os.WIFSIGNALED(status)
        if self._cgroup is not None:
            self._cgroup.remove()
        write_exit(
            self._directory,
            {
                "cause": cause,
                "detail": detail,
                "exit_code": os.WEXITSTATUS(status) if status is not None and exited else None,
                "signal": os.WTERMSIG(status) if status is not None and signalled else None,
                "started_at": self._started_at,
                "finished_at": finished_at,
                "proof": proof,
                "stdout_bytes": log.stdout_bytes,
                "stderr_bytes": log.stderr_bytes,
                "dropped_stdout": log.dropped_stdout,
                "dropped_stderr": log.dropped_stderr,
            },
        )


def _readable(data: bytes) -> int:
    """Returns a descriptor to read these bytes from, which are in memory alone. The caller closes it."""
    whole = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        write_all(whole, data)
        # Another open file, at its beginning and not to be written to.
        return os.open(f"/proc/self/fd/{whole}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(whole)


def time_allowed(spec: dict[str, Any]) -> float:
    """Seconds a command may still run."""
    timeout, ends_by = float(spec["timeout"]), spec.get("ends_by")
    return timeout if ends_by is None else max(0.0, min(timeout, float(ends_by) - elapsed_clock()))


def ending(request: dict[str, Any]) -> tuple[str, str]:
    """Returns cause and detail for a request to end the run."""
    if request.get("reason") == "timeout":
        return "timed_out", "ended on request: timeout"
    return "cancelled", "ended on request: cancel"
