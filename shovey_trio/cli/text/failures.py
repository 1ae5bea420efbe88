"""From any failure to one line on stderr and an exit code: what, why, what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import IO, Any, Final

import click
import trio

from shovey_trio.core.errors import Code, Exit, ShoveyError, words_of
from shovey_trio.rpc.bridge import ListenError, RpcError

# What to do about a reason, where there is something better to say than the message itself.
_ADVICE: Final = {
    "UNKNOWN_NODES": "`shovey node list` shows the nodes there are",
    "NO_TARGETS": "name nodes, or use --all, --tag or --match",
    "UNAUTHENTICATED": "ask an admin for a certificate (`shovey-trio user cert NAME`)",
    "REQUEST_ID_REUSED": "use another --request-id for another job",
    "HISTORY_GONE": "watch again without a token",
    "DRAINING": "the controller is stopping; try again when it is back",
    "OVERLOADED": "try again later",
    "EACCES": "run it as the owner of that file, or as root",
    "EPERM": "run it as root",
}
# What the operating system refuses because of what was typed; anything else (a full disk) is not the caller's mistake.
_TYPED_WRONG: Final = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_EXIT_BY_CODE: Final = {
    Code.INVALID_ARGUMENT: Exit.USAGE,
    Code.NOT_FOUND: Exit.NOT_FOUND,
    Code.OUT_OF_RANGE: Exit.NOT_FOUND,
    Code.ALREADY_EXISTS: Exit.CONFLICT,
    Code.ABORTED: Exit.CONFLICT,
    Code.PERMISSION_DENIED: Exit.DENIED,
    Code.UNAUTHENTICATED: Exit.DENIED,
    Code.UNIMPLEMENTED: Exit.USAGE,
    Code.RESOURCE_EXHAUSTED: Exit.BUSY,
    Code.UNAVAILABLE: Exit.UNREACHABLE,
    Code.DEADLINE_EXCEEDED: Exit.UNREACHABLE,
}


class Failed(click.ClickException):
    """A failure as it is shown: one line, no traceback."""

    def __init__(self, message: str, *, reason: str, exit: Exit, advice: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit.value  # type: ignore[misc]  # click itself sets it on instances
        self.advice = advice or _ADVICE.get(reason, "")

    def show(self, file: IO[Any] | None = None) -> None:
        """Writes the line."""
        advice = f"; {self.advice}" if self.advice else ""
        first, *errors = self.message.split("\n") if self.reason == "CONFIGURATION_INVALID" else [self.message]
        text = " ".join(f"{first}{advice}".split())
        click.echo("\n".join([f"error: {text} ({self.reason})", *errors]), file=file, err=True)


def failure_of(error: BaseException) -> Failed | None:
    """How to show ``error``; None for what is no failure of the world's but a bug of ours."""
    match error:
        case ShoveyError():
            return Failed(error.message, reason=error.reason, exit=error.exit)
        case RpcError():
            exit_by_reason = _exits().get(error.reason)
            return Failed(
                error.message or "the controller gave no reason",
                reason=error.reason,
                exit=exit_by_reason or _EXIT_BY_CODE.get(error.code, Exit.INTERNAL),
            )
        case trio.TooSlowError():
            return Failed("no answer in time", reason="TIMEOUT", exit=Exit.UNREACHABLE)
        case ListenError():
            return Failed(str(error), reason=error.reason, exit=Exit.BUSY)
        case OSError():
            reason = errno.errorcode.get(error.errno or 0, "OS_ERROR")
            exit = Exit.USAGE if isinstance(error, _TYPED_WRONG) else Exit.INTERNAL
            return Failed(words_of(error), reason=reason, exit=exit)
        case _:
            return None


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _exits() -> dict[str, Exit]:
    """The exit code of each reason, from the errors themselves."""

    def classes(base: type[ShoveyError]) -> Iterator[type[ShoveyError]]:
        for child in base.__subclasses__():
            yield child
            yield from classes(child)

    return {error.reason: error.exit for error in classes(ShoveyError)}
