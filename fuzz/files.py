"""Files that are read back, and what local processes and servers behind us say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import httpx2
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from fuzz.framing import run_in_trio
from fuzz.golden import document
from fuzz.target import Target
from shovey_agent.desk.nonces import parse_nonces
from shovey_agent.run.output_reader import OutputReader
from shovey_agent.run.spool import Spool, SpoolLimits
from shovey_agent.shovey.progress import Progress, ProgressFiles
from shovey_agent.supervisor.spool_files import (
    CANCEL,
    EXIT,
    INPUT,
    OUTPUT,
    SPEC,
    STARTED,
    SUPERVISOR,
    RecordUnreadable,
    encode_input,
    encode_record,
    read_record,
    take_input,
)
from shovey_trio.chef.server import ChefServer
from shovey_trio.config.server import ChefSection
from shovey_trio.core.chef.signing import load_private_key
from shovey_trio.core.errors import InvalidRequest, Unreachable
from shovey_trio.core.jobs.output import LogCursor, cut_chunks
from shovey_trio.core.jobs.output_frames import STDERR, STDOUT, encode_gap, encode_header
from shovey_trio.nursery.clock import WallClock
from shovey_trio.rpc.convert import report_message, timestamp
from shovey_trio.shovey.protocol.export import read_export

_RUN: Final = "run-1"
_RECORDS: Final = (SPEC, STARTED, EXIT, CANCEL, SUPERVISOR)

# JSON that Python reads, and that no record of ours has.
_STRANGE: Final = ("1e999", "-1e999", "NaN", "1" + "0" * 400, "-1", "true", "null", '"x"', "[]", "{}", '"\\ud800"')

# --- the spool ------------------------------------------------------------------------------------------------


@cache
def _directory() -> Path:
    """A state directory with one run in it, in memory where the machine has that."""
    shm = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
    state = Path(mkdtemp(prefix="fuzz-spool-", dir=shm if os.access(shm, os.W_OK) else None))
    (state / "runs" / _RUN).mkdir(parents=True)
    return state


def _spool(data: bytes) -> None:
    """The bytes as each of a run's records; what is read of it is told to a controller."""
    spool = Spool(_directory(), SpoolLimits())
    directory = _directory() / "runs" / _RUN
    name = _RECORDS[data[0] % len(_RECORDS)] if data else SPEC
    file = directory / name
    file.write_bytes(data[1:])
    try:
        known = spool.load(_RUN)
        assert known is not None
        timestamp(known.accepted_at)
        timestamp(known.started_at)
        if known.exit is not None:
            report_message(known.exit).SerializeToString()
        spool.is_waiting(_RUN, boot_id="boot", elapsed=1_000_000.0)
        read_record(str(directory), name)
    finally:
        file.unlink()


def _input(data: bytes) -> None:
    directory = _directory() / "runs" / _RUN
    (directory / INPUT).write_bytes(data)
    try:
        stdin, env, patterns = take_input(str(directory))
    finally:
        # Deleted whatever is in it: it holds secrets.
        assert not (directory / INPUT).exists()
    assert isinstance(stdin, bytes)
    assert all(isinstance(pattern, bytes) for pattern in patterns)
    assert all(isinstance(word, str) for pair in env.items() for word in pair)


def _spool_seeds() -> Iterator[bytes]:
    records: dict[str, dict[str, Any]] = {
        SPEC: {"run_id": _RUN, "job_id": "j", "command": "c", "lock": "", "boot_id": "boot", "accepted_at": 1.8e9},
        STARTED: {"pid": 7, "start_time": 9, "at": 1.8e9},
        EXIT: {
            "cause": "exited",
            "detail": "",
            "exit_code": 0,
            "signal": None,
            "started_at": 1.8e9,
            "finished_at": 1.8e9,
            "proof": "empty_cgroup",
            "stdout_bytes": 5,
            "stderr_bytes": 0,
            "dropped_stdout": 0,
            "dropped_stderr": 0,
        },
        CANCEL: {"reason": "cancel", "grace": 5.0, "at": 1.8e9},
        SUPERVISOR: {"pid": 7, "start_time": 9, "boot_id": "boot"},
    }
    for number, name in enumerate(_RECORDS):
        yield bytes([number]) + encode_record(records[name])
        for field in records[name]:
            for strange in _STRANGE:
                document = json.dumps({"format": 1, **records[name], field: 0})
                yield bytes([number]) + document.replace(f'"{field}": 0', f'"{field}": {strange}').encode()


# --- the output log and the nonces ----------------------------------------------------------------------------


def _log(data: bytes) -> None:
    """A log read in one piece, and by the reader from its file: positions go on, nothing is invented."""
    cut = cut_chunks(data, LogCursor(), position=0, limit=1 << 20)
    end = 0
    for chunk in cut.chunks:
        assert chunk.position == end
        assert 0 < len(chunk.data) <= 65_536
        end = chunk.position + len(chunk.data)
    assert sum(len(chunk.data) for chunk in cut.chunks) <= len(data)
    file = _directory() / OUTPUT
    file.write_bytes(data)
    reader = OutputReader(str(file))
    assert sum(len(chunk.data) for chunk in reader.read(0, 1 << 20)) <= len(data)
    reader.end()


def _log_seeds() -> Iterator[bytes]:
    yield encode_header(STDOUT, 5, 1.8e9) + b"hello" + encode_header(STDERR, 4, 1.8e9) + b"oops"
    yield encode_header(STDOUT, 1, 1.8e9) + b"a" + encode_gap(stdout=100, stderr=7, read_at=1.8e9) + b"\x01"


def _nonces(data: bytes) -> None:
    ledger, damaged = parse_nonces(data)
    assert isinstance(damaged, bool)
    ledger.prune(1.8e9)
    ledger.judge(b"n" * 16, expires_at=1.8e9, now=1.8e9, longest_life=86_400.0)
    assert ledger.floor == ledger.floor, "a floor that is NaN is below nothing"


# --- servers behind us ----------------------------------------------------------------------------------------


@cache
def _key() -> RSAPrivateKey:
    return load_private_key(document("chef-signing-vectors.json")["private_key"])


def _chef_server(data: bytes) -> None:
    """A Chef server that answers anything: the first byte is the status, and each question gets one line."""
    lines = data[1:].split(b"\n")
    status = (200, 404, 500, 204)[data[0] % 4] if data else 200
    asked = iter(lines)

    async def answer(_: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        return httpx2.Response(status, content=next(asked, b"{}"))

    async def main() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
            settings = ChefSection.model_validate(
                {
                    "server_url": "http://chef",
                    "client_name": "shovey",
                    "key_file": "-",
                    "organization": "org" if len(lines) % 2 else "",
                }
            )
            server = ChefServer(http, settings=settings, key=_key(), organization="default", clock=WallClock())
            for caller in await server.find("default", "somebody"):
                assert caller.principal.name == "somebody"
                assert caller.principal.organization == "default"
                assert caller.key.key_size >= 1024

    run_in_trio(main)


def _chef_server_seeds() -> Iterator[bytes]:
    pem = document("chef-signing-vectors.json")["public_key"]
    user = json.dumps({"name": "somebody", "type": "user", "public_key": pem, "org_member": True}).encode()
    client = json.dumps({"principals": [{"name": "somebody", "type": "client", "public_key": pem}]}).encode()
    yield b"\0" + user + b'\n{"admin": true}'
    yield b"\0" + client + b'\n{"users": ["somebody"], "clients": []}\n'
    yield b"\1"


def _export(data: bytes) -> None:
    found = read_export(_json(data), organization="default", now=1.8e9)
    assert all(principal.organization == "default" for principal in found.principals)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _export_seeds() -> Iterator[bytes]:
    pem = document("chef-signing-vectors.json")["public_key"]
    people = {
        "client": [{"name": "node", "public_key": pem}, {"name": "v", "validator": True}],
        "user": [{"name": "boss", "admin": True, "public_key": pem}],
        "node": [{"name": "node"}],
    }
    yield json.dumps({"MajorVersion": 1, "MinorVersion": 1, "Data": people}).encode()


def _progress(data: bytes) -> None:
    """What an agent in the old protocol knows of a run's reports; without a whole file, nothing."""
    file = ProgressFiles(_directory() / "legacy")
    (_directory() / "legacy" / f"{_RUN}.json").write_bytes(data)
    found = file.load(_RUN)
    file.save(_RUN, found)
    assert file.load(_RUN) == found


def _progress_seeds() -> Iterator[bytes]:
    file = ProgressFiles(_directory() / "legacy")
    path = _directory() / "legacy" / f"{_RUN}.json"
    file.save(_RUN, Progress())
    whole = path.read_bytes()
    yield whole
    for strange in _STRANGE:
        yield whole.replace(b'"position": 0', f'"position": {strange}'.encode())


TARGETS: Final = (
    Target(name="legacy-progress", decode=_progress, seeds=_progress_seeds, max_len=1024),
    Target(name="spool-records", decode=_spool, seeds=_spool_seeds, refusals=(RecordUnreadable,), max_len=2048),
    Target(
        name="spool-input",
        decode=_input,
        seeds=lambda: [encode_input(stdin=b"in", env={"A": "b"}, redact=[b"secret"])],
        refusals=(RecordUnreadable,),
        max_len=1024,
    ),
    Target(name="output-log", decode=_log, seeds=_log_seeds, max_len=1024),
    Target(
        name="nonces",
        decode=_nonces,
        seeds=lambda: [b"floor 1700000000.0\n1800000000.5 " + b"ab" * 16 + b"\n1800"],
        max_len=1024,
    ),
    Target(name="chef-server", decode=_chef_server, seeds=_chef_server_seeds, refusals=(Unreachable,), max_len=2048),
    Target(name="goiardi-export", decode=_export, seeds=_export_seeds, refusals=(InvalidRequest,)),
)
