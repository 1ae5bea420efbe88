"""Forks guardians of runs: ``python -I -S supervisor/zygote.py IMPORT_ROOT…`` with a control socket as stdin.

Starting Python costs tens of milliseconds of processor time, forking a started one costs one. So the agent keeps this
one small process, which has imported all that a supervisor needs and does nothing but fork. Each message on the control
socket is the path of a spool directory with one end of a socket pair. What is forked is the run's guardian, which forks
the supervisor; that answers, first with pidfds of itself and of the guardian. The zygote ends when the agent does; the
others do not.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# One message holds a path and nothing else.
_MAX_PATH = 4096


def main(import_roots: list[str]) -> None:
    # Behind the standard library, so that nothing in there can take the place of one of its modules.
    sys.path.extend(import_roots)
    # Before the first fork, so that it is done once.
    from shovey_agent.supervisor.guardian import guard
    from shovey_agent.supervisor.supervise import supervise

    # 0, 1 and 2 must stay taken, or a supervisor's pipe would get one of these numbers.
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # Dead supervisors need nobody to wait for them, and a cancel must not kill one that is not listening yet.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    gc.freeze()
    while True:
        path, descriptors, _, _ = socket.recv_fds(control, _MAX_PATH, 1)
        if not path:
            return
        # recv_fds() of Python 3.11 takes flags such as MSG_CMSG_CLOEXEC and ignores them.
        os.set_inheritable(descriptors[0], False)
        with socket.socket(fileno=descriptors[0]) as channel, contextlib.suppress(OSError):
            # A fork that fails closes the channel with nothing said: the agent knows what that means.
            if os.fork() == 0:
                control.close()
                _become_guardian(guard, supervise, os.fsdecode(path), channel)


def _become_guardian(
    guard: Callable[[str, Callable[[], None], Callable[[], None]], None],
    supervise: Callable[[str, Callable[[bytes], None]], None],
    directory: str,
    channel: socket.socket,
) -> None:
    """Has one run supervised and exits; never returns into the zygote."""

    def announce(word: bytes) -> None:
        # The agent may be gone by now; the run does not depend on it.
        with contextlib.suppress(OSError):
            if word == b"ready":
                pidfds = [os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid())]
                try:
                    socket.send_fds(channel, [word], pidfds)
                finally:
                    for pidfd in pidfds:
                        os.close(pidfd)
            else:
                channel.send(word)
                channel.close()

    def supervise_run() -> None:
        try:
            os.setsid()
            supervise(directory, announce)
        finally:
            # Whatever happened, the end of this process is what tells the agent to look at the spool.
            os._exit(0)

    try:
        os.setsid()
        guard(directory, supervise_run, channel.close)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
