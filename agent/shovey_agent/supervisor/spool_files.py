"""The files of a run's spool directory, and how they are written so that nobody ever reads half of one.

======================  ===========  =======================================================================
file                    written by   meaning
======================  ===========  =======================================================================
``order``               agent        the signed order as received, then its signature
``spec.json``           agent        what to run; complete and durable before anything is forked
``exit.reserve``        agent        4 KiB set aside, so that a full disk cannot keep back the exit record
``input.json``          agent        standard input and secrets; the supervisor deletes it when it has read it
``supervisor.json``     supervisor   pid, start time, boot, guardian: created exclusively, so its maker owns the run
``started.json``        supervisor   the command's pid, start time and when it started
``output``              supervisor   the output log (``shovey_trio.core.jobs.output_frames``)
``cancel.json``         agent        the request to end the run; the first one stands
``swept.json``          guardian     the supervisor was killed, and nothing of its run is left: cause and proof
``exit.json``           supervisor   how it ended; the agent writes it for a supervisor that is gone
``reported``            agent        the controller has the report
======================  ===========  =======================================================================

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os

from shovey_trio.observe import failpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1

ORDER = "order"
SPEC = "spec.json"
INPUT = "input.json"
EXIT_RESERVE = "exit.reserve"
SUPERVISOR = "supervisor.json"
STARTED = "started.json"
OUTPUT = "output"
CANCEL = "cancel.json"
SWEPT = "swept.json"
EXIT = "exit.json"
REPORTED = "reported"

RESERVED_BYTES = 4096
# A spec holds argv and env, which Linux bounds at 128 KiB a string and 6 MiB together; the rest are one-liners.
MAX_RECORD_BYTES = 8 * 1024 * 1024


class RecordUnreadable(Exception):
    """The file is there and is not a record of ours: cut short, damaged, or foreign."""

    reason = "RECORD_UNREADABLE"


def read_record(directory: str, name: str) -> dict[str, Any] | None:
    """Returns the record, or None when the file is not there.

    Raises:
        RecordUnreadable: it is not one of ours.
        OSError: out of descriptors, I/O error: what is in the file is not known.
    """
    try:
        with open(os.path.join(directory, name), "rb", buffering=0) as file:
            text = file.read(MAX_RECORD_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, PermissionError) as error:
        raise RecordUnreadable(f"{name}: {error.strerror}") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordUnreadable(f"{name}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise RecordUnreadable(f"{name}: not a record of format {FORMAT}")
    return record


def write_record(directory: str, name: str, record: dict[str, Any], *, durable: bool = True) -> None:
    """Writes the record, all of it or nothing, in place of any earlier one.

    Raises:
        OSError: disk full, read-only, gone.
    """
    temporary = os.path.join(directory, f".{name}.{os.getpid()}")
    try:
        write_file(temporary, encode_record(record), durable=durable)
        os.rename(temporary, os.path.join(directory, name))
        _passing(name, "named")
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(directory)


def claim_record(directory: str, name: str, record: dict[str, Any], *, durable: bool = False) -> bool:
    """Writes the record unless there is one already; returns whether it did. Two claims never both win.

    Raises:
        OSError: disk full, read-only, gone.
    """
    temporary = os.path.join(directory, f".{name}.{os.getpid()}")
    try:
        write_file(temporary, encode_record(record), durable=durable)
        os.link(temporary, os.path.join(directory, name))
        _passing(name, "named")
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    if durable:
        sync_directory(directory)
    return True


def encode_input(*, stdin: bytes, env: dict[str, str], redact: list[bytes]) -> bytes:
    """Returns the record of what only the supervisor may see."""
    text = {"stdin": _to_text(stdin), "env": env, "redact": [_to_text(pattern) for pattern in redact]}
    return encode_record(text)


def take_input(directory: str) -> tuple[bytes, dict[str, str], list[bytes]]:
    """Reads and deletes the input: standard input, secret variables, and what to redact from the output.

    Raises:
        RecordUnreadable: it is damaged.
        OSError: it cannot be read, or not be deleted.
    """
    try:
        record = read_record(directory, INPUT)
    finally:
        drop_input(directory)
    if record is None:
        return b"", {}, []
    try:
        patterns = [base64.b64decode(pattern) for pattern in record["redact"]]
        return base64.b64decode(record["stdin"]), dict(record["env"]), patterns
    except (KeyError, TypeError, ValueError) as error:
        raise RecordUnreadable(f"{INPUT}: {type(error).__name__}") from None


def drop_input(directory: str) -> None:
    """Deletes the input of a run that will not read it any more.

    Raises:
        OSError: it is there and cannot be deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, INPUT))


def write_exit(directory: str, record: dict[str, Any]) -> None:
    """Writes the exit record into the space that was set aside for it when the run was accepted.

    Raises:
        OSError: even that failed.
    """
    reserve = os.path.join(directory, EXIT_RESERVE)
    text = encode_record(record)
    # No O_TRUNC: giving the blocks back is what must not happen on a full disk.
    descriptor = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        failpoints.passing("spool.exit.before")
        write_all(descriptor, text)
        os.ftruncate(descriptor, len(text))
        os.fsync(descriptor)
        failpoints.passing("spool.exit.written")
    finally:
        os.close(descriptor)
    os.rename(reserve, os.path.join(directory, EXIT))
    failpoints.passing("spool.exit.named")
    sync_directory(directory)
    failpoints.passing("spool.exit.after")


def encode_record(record: dict[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, **record}).encode("ascii")


def write_file(path: str, data: bytes, *, durable: bool) -> None:
    """Creates or replaces a file of mode 0600.

    Raises:
        OSError: disk full, read-only, gone.
    """
    _passing(path, "before")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _passing(path, "empty")
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _passing(path, "after")


def write_all(descriptor: int, data: bytes) -> None:
    """Writes every byte; a short write is how a full disk begins.

    Raises:
        OSError: disk full, read-only, gone.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(directory: str) -> None:
    """Makes the names in a directory durable.

    Raises:
        OSError: gone, or the disk failed.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _passing(path: str, side: str) -> None:
    """Passes the failpoint of a file's step; a temporary file ``.NAME.PID`` counts as NAME."""
    if failpoints.is_on():
        name = os.path.basename(path)
        name = name[1:].rpartition(".")[0] if name.startswith(".") else name
        failpoints.passing(f"spool.{name.removesuffix('.json')}.{side}")
