"""Starting the command: fork, then exactly the right things between fork and exec.

No shell, no stdin but the order's, a session and process group of its own, nothing inherited but the two pipes.

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

import errno
import os
import resource
import signal

from shovey_agent.supervisor.proc_posix import die_with_parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_FAILED = 127


class SpawnFailed(Exception):
    """The command could not be started; nothing of it is running.

    Attributes:
        detail: which step failed and why, for the operator.
    """

    reason = "SPAWN_FAILED"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def spawn(spec: dict[str, Any], streams: tuple[int | None, int, int]) -> int:
    """Starts the command and returns its pid, which is its session and process group too.

    Returns only when the program itself has been loaded.

    Args:
        spec: the run's, with ``argv``, ``cwd``, ``env``, ``umask`` and, where there are any: ``cgroup_procs``, the file
            that takes it into its cgroup; ``account``, uid, gid and supplementary groups to become; ``nice``, added to
            the supervisor's own; ``rlimits``, soft and hard limit by the kernel's number, where a lower one stays.
        streams: what it reads, None for nothing; what its two outputs are.

    Raises:
        SpawnFailed: no such program or directory, not executable, no process to be had. Nothing is left behind.
    """
    parent = os.getpid()
    verdict, report = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(verdict, "rb", buffering=0) as reader:
        try:
            pid = os.fork()
        except OSError as error:
            os.close(report)
            raise SpawnFailed(f"fork: {error.strerror}") from error
        if pid == 0:
            _become(spec, streams, parent, report)
        os.close(report)
        # The pipe closes at exec: an empty answer is success.
        failure = reader.readall()
    if failure:
        os.waitpid(pid, 0)
        raise SpawnFailed(failure.decode("utf-8", "replace"))
    return pid


def _become(spec: dict[str, Any], streams: tuple[int | None, int, int], parent: int, report: int) -> NoReturn:
    """Turns the forked child into the command, or says what stopped it and exits."""
    step = "start"
    argv, (stdin, stdout, stderr) = spec["argv"], streams
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        step = "cgroup"
        if spec.get("cgroup_procs") is not None:
            with open(spec["cgroup_procs"], "w") as file:
                file.write("0")
        if nice := spec.get("nice", 0):
            step = f"nice {nice}"
            os.nice(nice)
        if (account := spec.get("account")) is not None:
            step = f"account {account[0]}"
            _become_account(*account)
        # A command without its supervisor has no deadline and nobody to report it: it goes with it. Only now, because
        # a change of account takes it back (prctl(2), PR_SET_PDEATHSIG).
        die_with_parent()
        if os.getppid() != parent:
            os._exit(_FAILED)
        # Where the account may not go the command may not start.
        step = f"directory {spec['cwd']}"
        os.chdir(spec["cwd"])
        os.umask(spec["umask"])
        step = "stdin"
        os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        step = argv[0]
        # An ignored signal stays ignored across exec, and Python ignores SIGPIPE: `yes | head` would never end.
        for number in signal.valid_signals():
            if signal.getsignal(number) is not signal.SIG_DFL and number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number, most in spec.get("rlimits", {}).items():
            _limit(number, most)
        os.execvpe(argv[0], argv, spec["env"])  # noqa: S606 -- that it starts without a shell is the point
    except OSError as error:
        _say(report, f"{step}: {error.strerror or os.strerror(error.errno or errno.EIO)}")
    except Exception as error:  # noqa: BLE001 -- this process must not run on as a second supervisor
        _say(report, f"{step}: {error!r}")
    finally:
        os._exit(_FAILED)


def _become_account(uid: int, gid: int, *groups: int) -> None:
    """Becomes another account for good. The order matters: without root's uid no group can be changed any more."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _limit(number: int, most: int) -> None:
    _, hard = resource.getrlimit(number)
    lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(number, (lowest, lowest))


def _say(report: int, text: str) -> None:
    os.write(report, text.encode("utf-8", "surrogateescape")[:1024])
