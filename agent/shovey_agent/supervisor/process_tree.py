"""Ending a whole process tree so that not even a fork storm outruns it.

The caller is a subreaper, so every process of the tree stays below it until it is waited for. That gives the proof:
when ``waitpid`` says that there are no children, the tree is gone.

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

import contextlib
import os
import signal

from shovey_agent.supervisor.proc_posix import ProcessStat, descendants, signal_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# How long a tree may resist SIGKILL (a process in uninterruptible sleep does, a storm may) before it is called lost.
KILL_PATIENCE_S = 60.0
# How many dead are waited for at one turn: a storm makes them faster than one looks.
REAPS_PER_TURN = 500
# Each pass stops all that the one before had not seen. A storm adds fewer at each pass, since only those not yet
# stopped can fork; one that does not settle is killed as far as known and swept again.
_MAX_PASSES = 200


def terminate_tree(group: int) -> None:
    """Asks the tree to end: SIGTERM to the leader's group at one stroke, then to everyone who left the group.

    ``group`` must still have its leader, dead or alive, not yet waited for. A stopped process is woken to hear it.
    """
    for signum in (signal.SIGTERM, signal.SIGCONT):
        with contextlib.suppress(OSError):
            os.killpg(group, signum)
    for stat in descendants({os.getpid()}):
        if stat.group != group and signal_process(stat, signal.SIGTERM):
            signal_process(stat, signal.SIGCONT)


def reap_some() -> list[int] | None:
    """Waits for the dead among the children, a bounded number; None when there are no children at all."""
    reaped: list[int] = []
    while len(reaped) < REAPS_PER_TURN:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            break
        reaped.append(pid)
    return reaped


def kill_tree(group: int | None, reap: Callable[[], list[int] | None]) -> None:
    """Kills everything below this process once: stops all of it until nobody new appears, then kills it.

    The caller waits for the dead and calls again until there is nobody to wait for.

    Args:
        group: the leader's process group while the leader is not waited for, so that the number is still its own.
        reap: waits for some of the dead and returns their pids, None when there are no children. Dead that are left
            lying make every look slower and, in a storm, use up the machine's process ids.
    """
    with contextlib.suppress(OSError):
        # Above the storm that is being stopped; without the right to, it only takes longer.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    if group is not None:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    children: set[int] = set()
    deeper: dict[tuple[int, int], ProcessStat] = {}
    for _ in range(_MAX_PASSES):
        reaped = reap()
        if reaped is None:
            return
        children.difference_update(reaped)
        # Orphans become children of this process, so a chain of parents that exit is caught here, where a look costs
        # microseconds. A child's pid stays its own until it is waited for, and then it is not in the set any more.
        if fresh_children := _children() - children:
            for pid in fresh_children:
                _signal_child(pid, signal.SIGSTOP)
            children |= fresh_children
            continue
        everyone = descendants({os.getpid()})
        fresh = [stat for stat in everyone if stat.pid not in children and _key(stat) not in deeper]
        if not fresh:
            break
        for stat in fresh:
            signal_process(stat, signal.SIGSTOP)
            deeper[_key(stat)] = stat
    for stat in deeper.values():
        signal_process(stat, signal.SIGKILL)
    for pid in children:
        _signal_child(pid, signal.SIGKILL)


def survivors() -> list[int]:
    """Returns the pids still alive below this process."""
    return [stat.pid for stat in descendants({os.getpid()})]


def _children() -> set[int]:
    """Returns the pids of this process's children, dead ones too, as quickly as that can be done.

    Empty on a kernel without CONFIG_PROC_CHILDREN: there the slower look at all of /proc finds them.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb", buffering=0) as file:
            return {int(pid) for pid in file.readall().split()}
    except OSError:
        return set()


def _signal_child(pid: int, signum: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signum)


def _key(stat: ProcessStat) -> tuple[int, int]:
    return stat.pid, stat.start_time
