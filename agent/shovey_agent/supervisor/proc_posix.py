"""Processes by identity: a pid means nothing without the time its process started.

Everything that signals a process it did not itself fork goes through here, so that a recycled pid is never hit: a pidfd
is opened first, then ``/proc`` is read again, and only then is the signal sent through the pidfd.

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessStat:
    """The part of ``/proc/PID/stat`` that says who a process is (proc_pid_stat(5)).

    ``start_time`` is in clock ticks since boot; with the pid and the boot it names a process for good.
    """

    __slots__ = ("group", "parent", "pid", "session", "start_time", "state")

    def __init__(self, *, pid: int, state: str, parent: int, group: int, session: int, start_time: int) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent
        self.group = group
        self.session = session
        self.start_time = start_time

    @property
    def is_dead(self) -> bool:
        return self.state in "ZXx"


def read_stat(pid: int) -> ProcessStat | None:
    """Returns who ``pid`` is now, or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            line = file.read(4096)
    except OSError:
        return None
    # The name is in parentheses and may itself hold blanks and parentheses.
    fields = line[line.rfind(b")") + 2 :].split()
    if len(fields) < 20:
        return None
    return ProcessStat(
        pid=pid,
        state=fields[0].decode("ascii", "replace"),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_time=int(fields[19]),
    )


def all_processes() -> Iterator[ProcessStat]:
    """Yields every process there is; the picture is not taken at one instant."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = read_stat(int(name))
            if stat is not None:
                yield stat


def descendants(roots: set[int]) -> list[ProcessStat]:
    """Returns the living processes below ``roots``, which are not themselves included.

    One that forks or loses its parent while ``/proc`` is read may be missed; who needs all of them asks again.
    """
    children: dict[int, list[ProcessStat]] = {}
    for stat in all_processes():
        children.setdefault(stat.parent, []).append(stat)
    found: list[ProcessStat] = []
    todo = list(roots)
    seen = set(roots)
    while todo:
        for stat in children.get(todo.pop(), ()):
            if stat.pid not in seen:
                seen.add(stat.pid)
                todo.append(stat.pid)
                if not stat.is_dead:
                    found.append(stat)
    return found


def open_process(pid: int, start_time: int) -> int | None:
    """Returns a pidfd of exactly that process, or None when it is gone or a zombie. The caller closes it."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    stat = read_stat(pid)
    if stat is None or stat.start_time != start_time or stat.is_dead:
        os.close(pidfd)
        return None
    return pidfd


def signal_process(stat: ProcessStat, signum: int) -> bool:
    """Signals exactly that process; returns whether it was there and could be signalled."""
    pidfd = open_process(stat.pid, stat.start_time)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def is_held(pid: int) -> bool:
    """Returns whether a process cannot do its work because it is stopped, or traced by another."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            fields = dict(line.split(b":\t", 1) for line in file.read(16384).splitlines() if b":\t" in line)
    except OSError:
        return False
    return fields.get(b"State", b"")[:1] in (b"T", b"t") or fields.get(b"TracerPid", b"0") != b"0"


def boot_id() -> str:
    """Returns the random id of this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def elapsed_clock() -> float:
    """Seconds on a clock that no one can set and that runs on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def become_subreaper() -> None:
    """Makes this process the parent of every orphan below it: none of the tree can leave it (prctl(2)).

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Makes the kernel kill this process when its parent dies. To be called between fork and exec.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
