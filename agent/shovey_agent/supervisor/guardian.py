"""The guardian: one small process above each supervisor, which owns whatever falls out of it.

A command of the supervisor's own account can stop, trace or kill it. So the guardian is a subreaper too: when the
supervisor dies, all that lived below it becomes the guardian's, however it has wandered off. It does nothing else:

* A supervisor that ends with a record has kept its word: the guardian goes, and what the command left lives on.
* One that dies without a record leaves a tree to be ended. The guardian ends it, notes what it can prove in
  ``swept.json`` and goes; the agent makes the run's end of that.
* One that is stopped or traced, and should have ended its run some time ago, is killed, and then as above.

Runs in a process forked from ``zygote``: the standard library's small modules alone.
"""

from __future__ import annotations

import os
import signal

from shovey_agent.supervisor.cgroup import RunCgroup
from shovey_agent.supervisor.proc_posix import become_subreaper, elapsed_clock, is_held
from shovey_agent.supervisor.process_tree import KILL_PATIENCE_S, kill_tree, reap_some
from shovey_agent.supervisor.spool_files import (
    CANCEL,
    EXIT,
    SPEC,
    SUPERVISOR,
    SWEPT,
    RecordUnreadable,
    read_record,
    write_record,
)
from shovey_agent.supervisor.supervise import ending, time_allowed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# How long after the grace a supervisor that is stopped or traced may be late.
_LATE_S = 2.0
# How long any supervisor may be late: it may be at a tree that resists.
_VERY_LATE_S = KILL_PATIENCE_S + 15.0
_LONGEST_WAIT_S = 30.0
_SWEEP_INTERVAL_S = 0.02
_WAKING = (signal.SIGCHLD, signal.SIGUSR1)


def guard(directory: str, supervise_run: Callable[[], None], let_go: Callable[[], None]) -> None:
    """Has a supervisor forked for the run of a directory, and stays until nothing can fall out of it any more.

    Args:
        directory: the run's.
        supervise_run: what the supervisor does; must not return.
        let_go: called in the guardian once the supervisor is there.

    Raises:
        OSError: no supervisor could be forked; nothing was started.
    """
    become_subreaper()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    supervisor = os.fork()
    if supervisor == 0:
        supervise_run()
    let_go()
    # Only now: the supervisor must not inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAKING)
    spec = _read(directory, SPEC)
    overdue_at = elapsed_clock() + time_allowed(spec) if spec else float("inf")
    _wait_for(supervisor, directory, overdue_at + spec.get("grace", 0.0))
    if os.path.exists(os.path.join(directory, EXIT)) or _read(directory, SUPERVISOR).get("pid") != supervisor:
        return
    cgroup = RunCgroup(spec["cgroup"], spec["run_id"]) if spec["cgroup"] else None
    proven = _end_orphans(cgroup)
    request = _read(directory, CANCEL)
    if request:
        cause, detail = ending(request)
    elif elapsed_clock() >= overdue_at:
        cause, detail = "timed_out", "the node's deadline passed"
    else:
        cause, detail = "supervisor_lost", "the supervisor was killed"
    proof = "empty_subreaper" if cgroup is None else "empty_cgroup"
    # Without proof the agent looks for itself.
    if proven:
        write_record(directory, SWEPT, {"cause": cause, "detail": detail, "proof": proof})


def _wait_for(supervisor: int, directory: str, late_from: float) -> None:
    """Waits for the supervisor's end, and brings it about when it is late."""
    asked = False
    while os.waitpid(supervisor, os.WNOHANG) == (0, 0):
        if not asked and (request := _read(directory, CANCEL)):
            asked = True
            late_from = min(late_from, elapsed_clock() + float(request.get("grace", 0.0)))
        left = late_from + _LATE_S - elapsed_clock()
        if left <= 0:
            if is_held(supervisor) or left < -_VERY_LATE_S:
                os.kill(supervisor, signal.SIGKILL)
            left = 0.5
        signal.sigtimedwait(_WAKING, min(left, _LONGEST_WAIT_S))


def _end_orphans(cgroup: RunCgroup | None) -> bool:
    """Kills all that is left of the run; returns whether it is shown to be gone."""
    give_up_at = elapsed_clock() + KILL_PATIENCE_S
    while True:
        reaped = reap_some()
        if reaped is None and (cgroup is None or cgroup.is_empty()):
            if cgroup is not None:
                cgroup.remove()
            return True
        if elapsed_clock() > give_up_at:
            return False
        if cgroup is not None:
            cgroup.kill()
        kill_tree(None, reap_some)
        signal.sigtimedwait(_WAKING, _SWEEP_INTERVAL_S)


def _read(directory: str, name: str) -> dict[str, Any]:
    try:
        return read_record(directory, name) or {}
    except (OSError, RecordUnreadable):
        return {}
