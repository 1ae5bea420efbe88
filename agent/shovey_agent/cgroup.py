"""A control group of version 2 for one run: the kernel's own list of a process tree, and its own way to end it.

Used where the agent was given a cgroup of its own (``Delegate=yes`` in its unit). No controller has to be enabled:
``cgroup.procs``, ``cgroup.kill`` and ``cgroup.events`` are there in every cgroup (kernel, cgroup-v2.rst).

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
        """Limits the memory of the whole group; False where it has no memory controller (it was not delegated)."""
        try:
            with open(os.path.join(self.path, "memory.max"), "w") as file:
                file.write(str(most))
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Kills everything inside at once; forks cannot outrun it."""
        with contextlib.suppress(OSError), open(os.path.join(self.path, "cgroup.kill"), "w") as file:
            file.write("1")

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


def find_delegated_cgroup() -> str | None:
    """Returns the agent's own cgroup if systemd has delegated it, else None.

    Being root is no permission: a group that systemd manages itself is not ours to divide. systemd marks those that
    are with an extended attribute (systemd's CGROUP_DELEGATION.md).
    """
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("0::"))
        with open("/proc/self/mounts", encoding="utf-8") as file:
            mount = next(fields[1] for fields in map(str.split, file) if fields[2] == "cgroup2")
    except (OSError, StopIteration):
        return None
    path = os.path.join(mount, line[3:].strip().lstrip("/"))
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1" and os.access(path, os.W_OK):
                return path
    return None
