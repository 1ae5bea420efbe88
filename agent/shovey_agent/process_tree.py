"""Ending a whole process tree so that not even a fork storm outruns it.

The caller is a subreaper, so every process of the tree stays below it until it is waited for. That gives the proof:
when ``waitpid`` says that there are no children, the tree is gone.

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

import contextlib
import os
import signal

from shovey_agent.proc_posix import descendants, signal_process

# Each pass stops all that the one before had not seen. A storm adds fewer at each pass, since only those not yet
# stopped can fork; one that does not settle is killed as far as known and swept again.
_MAX_PASSES = 50


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


def kill_tree(group: int | None) -> None:
    """Kills everything below this process once: stops all of it until nobody new appears, then kills it.

    The caller waits for the dead and calls again until there is nobody to wait for.

    Args:
        group: the leader's process group while the leader is not waited for, so that the number is still its own.
    """
    with contextlib.suppress(OSError):
        # Above the storm that is being stopped; without the right to, it only takes longer.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    if group is not None:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    stopped = {}
    for _ in range(_MAX_PASSES):
        fresh = [stat for stat in descendants({os.getpid()}) if (stat.pid, stat.start_time) not in stopped]
        if not fresh:
            break
        for stat in fresh:
            signal_process(stat, signal.SIGSTOP)
            stopped[stat.pid, stat.start_time] = stat
    for stat in stopped.values():
        signal_process(stat, signal.SIGKILL)


def survivors() -> list[int]:
    """Returns the pids still alive below this process."""
    return [stat.pid for stat in descendants({os.getpid()})]
