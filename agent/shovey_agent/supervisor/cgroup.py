"""A control group of version 2 for one run: the kernel's own list of a process tree, and its own way to end it.

Used where the agent was given a cgroup of its own (``Delegate=yes`` in its unit). To end a run no controller has to be
enabled: ``cgroup.procs``, ``cgroup.kill`` and ``cgroup.events`` are there in every cgroup (kernel, cgroup-v2.rst).

To limit a run's memory and processes these controllers must be enabled for the groups below ours, and the kernel allows
that only where no process is in ours itself ("no internal processes"). So the agent's own processes must be in a group
below too, which is what ``DelegateSubgroup=`` in the unit does (systemd 254). Moving them by ourselves would not do:
after a restart systemd could not put the new process into a group whose runs live on with the controllers enabled.

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

import contextlib
import os

_PREFIX = "run-"


class RunCgroup:
    """The cgroup of one run. Every method is quick and synchronous."""

    def __init__(self, parent: str, run_id: str) -> None:
        self.path = os.path.join(parent, _PREFIX + run_id)

    @property
    def procs(self) -> str:
        """The file into which a process writes ``0`` to move itself here."""
        return os.path.join(self.path, "cgroup.procs")

    def create(self) -> None:
        """Makes the group.

        Raises:
            OSError: not a cgroup, not delegated, or the kernel is older than 5.14 and has no ``cgroup.kill``.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path)
        if not os.path.exists(os.path.join(self.path, "cgroup.kill")):
            self.remove()
            raise OSError(f"{self.path} has no cgroup.kill")

    def limit_memory(self, most: int) -> bool:
        """Limits the memory of the whole group, swap included; False where it has no memory controller.

        What goes beyond it ends the whole tree, not whichever process the kernel picks: half a command is none.
        """
        try:
            _write(os.path.join(self.path, "memory.max"), str(most))
        except OSError:
            return False
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            # A kernel without swap accounting, or older than 4.19, has not got them.
            with contextlib.suppress(OSError):
                _write(os.path.join(self.path, name), value)
        return True

    def limit_processes(self, most: int) -> bool:
        """Limits how many processes and threads the whole group has; False where it has no pids controller."""
        try:
            _write(os.path.join(self.path, "pids.max"), str(most))
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Kills everything inside at once; forks cannot outrun it."""
        with contextlib.suppress(OSError):
            _write(os.path.join(self.path, "cgroup.kill"), "1")

    def is_empty(self) -> bool:
        """Returns whether nothing alive is inside or below; False when that cannot be read."""
        try:
            with open(os.path.join(self.path, "cgroup.events"), encoding="ascii") as file:
                return "populated 0" in file.read().splitlines()
        except OSError:
            return False

    def remove(self) -> None:
        """Removes the group unless something still lives in it."""
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def remove_empty_groups(parent: str) -> None:
    """Removes the groups of runs that are over, whose background children have ended since."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(_PREFIX):
                # Only an empty group can be removed, so nothing is lost by trying.
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(parent, name))


def find_delegated_cgroup(proc: str = "/proc/self") -> str | None:
    """Returns the cgroup that systemd has delegated to the agent, ready for runs, else None.

    Being root is no permission: a group that systemd manages itself is not ours to divide. systemd marks those that
    are with an extended attribute (systemd's CGROUP_DELEGATION.md). It is this process's own group or, where the unit
    has a ``DelegateSubgroup=``, the one above; there runs get its controllers too.

    Args:
        proc: this process's directory in /proc.
    """
    try:
        with open(os.path.join(proc, "cgroup"), encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("0::"))
        with open(os.path.join(proc, "mounts"), encoding="utf-8") as file:
            mount = next(fields[1] for fields in map(str.split, file) if fields[2] == "cgroup2")
    except (OSError, StopIteration):
        return None
    own = os.path.normpath(os.path.join(mount, line[3:].strip().lstrip("/")))
    if _is_delegated(own):
        return own
    above = os.path.dirname(own)
    if own == os.path.normpath(mount) or not _is_delegated(above):
        return None
    enable_controllers(above)
    return above


def enable_controllers(path: str) -> None:
    """Has the groups below this one limit memory and processes, as far as these controllers were delegated."""
    try:
        with open(os.path.join(path, "cgroup.controllers"), encoding="ascii") as file:
            delegated = file.read().split()
    except OSError:
        return
    if wanted := [f"+{name}" for name in ("memory", "pids") if name in delegated]:
        with contextlib.suppress(OSError):
            _write(os.path.join(path, "cgroup.subtree_control"), " ".join(wanted))


def _is_delegated(path: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1" and os.access(path, os.W_OK):
                return True
    return False


def _write(path: str, value: str) -> None:
    """Writes to a file of the kernel's, which must be there: opened so that none is made."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)
