"""What fuzzing has found: one test per find, named by the rule that was broken."""

from __future__ import annotations

import json
from base64 import b64encode, encodebytes
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from lab.chef_client import make_key
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_agent.desk.wire import DeskProtocolError, run_value
from shovey_agent.run.runs import ExitCause, RunPhase
from shovey_agent.run.spool import Spool, SpoolLimits
from shovey_agent.shovey.progress import Progress, ProgressFiles
from shovey_trio.application.audit_verify import verify_export
from shovey_trio.chef.server import ChefServer
from shovey_trio.config.server import ChefSection
from shovey_trio.core.audit.head import decode_head
from shovey_trio.core.audit.records import AuditBroken
from shovey_trio.core.errors import (
    InvalidCertificateRequest,
    InvalidRequest,
    InvalidToken,
    Unauthenticated,
    Unreachable,
)
from shovey_trio.core.jobs.events import NodeReported, NodeStarted, ReportOutcome, RunReport
from shovey_trio.core.jobs.model import Run
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.search import parse_search
from shovey_trio.core.jobs.states import RunState
from shovey_trio.identity.authority import CertificateUnreadable, create_authority, read_certificates
from shovey_trio.identity.files import FileUnusable
from shovey_trio.identity.names import node_identity
from shovey_trio.identity.renewal import verify_certificate
from shovey_trio.identity.requests import make_private_key, make_request, read_request
from shovey_trio.nursery.clock import WallClock
from shovey_trio.rpc.convert import refusal_value, report_value, run_message, sane_time, seconds
from shovey_trio.shovey.protocol.views import run_view
from shovey_trio.store.sql.pages import decode_key, encode_page
from shovey_trio.v1 import agent_service_pb2, launcher_pb2

_NOW = 1_800_000_000.0
_RUN = Run(
    id="run", job_id="job", organization="default", node="web-1", created_at=_NOW, updated_at=_NOW, nonce=b"n" * 16
)


def test_a_certificate_request_of_a_version_that_does_not_exist_is_refused_as_any_other_garbage() -> None:
    der = bytearray(make_request(make_private_key()))
    at = der.index(b"\x02\x01\x00")
    der[at + 2] = 16
    with pytest.raises(InvalidCertificateRequest):
        read_request(bytes(der))


def test_a_certificate_with_a_key_of_an_unknown_kind_is_refused_as_any_other_garbage() -> None:
    authority = create_authority(organization="default", key=ec.derive_private_key(7, ec.SECP256R1()), now=_NOW)
    csr = make_request(make_private_key())
    chain = authority.issue_client(csr=csr, identity=node_identity("default", "web-1"), now=_NOW).chain
    der = read_certificates(chain)[0].public_bytes(Encoding.DER)
    # id-ecPublicKey, 1.2.840.10045.2.1, of a family that nobody has heard of; and a version that does not exist.
    strange_key = der.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce5d0201"))
    strange_version = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020109"))
    for changed in (strange_key, strange_version):
        assert changed != der
        with pytest.raises(Unauthenticated, match="does not parse"):
            verify_certificate(_pem(changed), authorities=[authority.certificate], revoked=(), now=_NOW)
    with pytest.raises(CertificateUnreadable):
        read_certificates(_pem(strange_version))


@pytest.mark.parametrize("query", ["name:a~.", "name:a^.", 'name:"a b"~1.5', "-" + "(" * 1500 + "a" + ")" * 1500])
def test_a_search_that_the_parser_stumbles_over_is_refused_as_one_that_cannot_be_read(query: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_search(query)


@pytest.mark.parametrize("key", ["9" * 19, "9" * 20, "9" * 5000])
def test_a_page_token_with_a_number_that_no_row_can_have_is_refused(key: str) -> None:
    listing = ("jobs", "default")
    assert decode_key(listing, encode_page(listing, str(2**63 - 1))) == 2**63 - 1
    with pytest.raises(InvalidToken):
        decode_key(listing, encode_page(listing, key))


@pytest.mark.parametrize("at", [2**63 - 1, -(2**63), 10**12])
def test_whatever_time_a_node_tells_its_run_can_be_shown_afterwards(at: int) -> None:
    report = agent_service_pb2.RunReport(outcome=agent_service_pb2.REPORT_OUTCOME_EXITED, exit_code=0)
    for told in (report.started_at, report.finished_at):
        told.seconds, told.nanos = at, 999_999_999
    value = report_value(report)
    assert value is not None
    for event in (NodeStarted(at=sane_time(seconds(report.started_at) - 1e12)), NodeReported(report=value)):
        run = handle(_RUN, event, _NOW).run
        assert run.state in {RunState.RUNNING, RunState.SUCCEEDED}
        message = run_message(run)
        assert datetime(1970, 1, 1, tzinfo=UTC) <= message.started_at.ToDatetime(UTC)
        assert json.dumps(run_view(run))


def test_of_a_nodes_own_words_a_run_keeps_a_bounded_part() -> None:
    long = "x" * 1_000_000
    report = report_value(agent_service_pb2.RunReport(outcome=1, cause=long, detail=long))
    refusal = refusal_value(agent_service_pb2.OrderRefused(reason=long, detail=long, kind=1))
    assert report is not None
    for word, detail in ((report.cause, report.detail), (refusal.reason, refusal.detail)):
        assert (len(word), len(detail)) == (100, 4096)


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1.0, 1e30])
def test_a_time_of_the_launchers_that_is_none_ends_the_conversation(at: float) -> None:
    run = launcher_pb2.SpooledRun(run_id="r", job_id="j", state=1, accepted_at=1.8e9)
    assert run_value(run).accepted_at == 1.8e9
    run.accepted_at = at
    with pytest.raises(DeskProtocolError):
        run_value(run)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"principals": [1, "x", null]}',
        b'{"type": [], "public_key": 1}',
        b"[" * 100_000,
        b'{"x": "' + b"y" * 2_000_000 + b'"}',
        b"\xff",
    ],
    ids=["entries", "types", "deep", "large", "bytes"],
)
async def test_a_chef_server_that_answers_nonsense_proves_nothing(answer: bytes) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=answer))
    settings = ChefSection.model_validate({"server_url": "http://chef", "client_name": "shovey", "key_file": "-"})
    with trio.fail_after(30):
        async with httpx2.AsyncClient(transport=transport) as http:
            server = ChefServer(http, settings=settings, key=make_key(), organization="default", clock=WallClock())
            try:
                assert await server.find("default", "somebody") == ()
            except Unreachable:
                return


async def test_a_chef_server_whose_answer_cannot_be_unpacked_proves_nothing() -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx2.ByteStream(b"no gzip"))

    settings = ChefSection.model_validate({"server_url": "http://chef", "client_name": "shovey", "key_file": "-"})
    with trio.fail_after(30):
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
            server = ChefServer(http, settings=settings, key=make_key(), organization="default", clock=WallClock())
            with pytest.raises(Unreachable):
                await server.find("default", "somebody")


@pytest.mark.parametrize("text", ['{"head": 2}', "[" * 100_000, '{"head": "1:00", "at": 1' + "0" * 400 + "}", "[]"])
def test_a_head_of_the_audit_log_that_is_none_is_said_to_be_broken(text: str) -> None:
    with pytest.raises(AuditBroken):
        decode_head(text, Ed25519PrivateKey.generate().public_key())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"seq": "1"}', "[]", '{"seq": 1, "at": null}'])
def test_an_export_of_the_audit_log_that_is_none_is_said_to_be_broken(text: str) -> None:
    with pytest.raises(AuditBroken):
        verify_export([text], expected=())


@pytest.mark.parametrize("created_at", ["1e999", "-1e999", "NaN"])
def test_a_key_file_with_a_time_that_is_none_is_damaged(tmp_path: Path, created_at: str) -> None:
    key = f'{{"public_key": "{b64encode(b"k" * 32).decode()}", "active": true, "created_at": {created_at}}}'
    file = tmp_path / "signing-keys.json"
    file.write_text(f'{{"format": 1, "organization": "default", "serial": 1, "keys": [{key}]}}')
    file.chmod(0o600)
    with pytest.raises(FileUnusable):
        TrustedKeys.load(file, "default")


@pytest.mark.parametrize("strange", ["1e999", "NaN", "1" + "0" * 400, "-1", "true", '"x"', "[]"])
@pytest.mark.parametrize("field", ["exit_code", "signal", "finished_at", "stdout_bytes", "dropped_stdout"])
def test_an_exit_record_with_a_number_that_is_none_is_no_record(tmp_path: Path, field: str, strange: str) -> None:
    spool = Spool(tmp_path, SpoolLimits())
    record = _written_exit(spool)
    assert spool.exit_report("r") is not None
    fields = json.dumps({**json.loads(record.read_text()), field: "THIS"})
    record.write_text(fields.replace('"THIS"', strange))
    assert spool.exit_report("r") is None
    known = spool.load("r")
    assert known is not None
    assert known.phase is not RunPhase.FINISHED


@pytest.mark.parametrize("strange", ["1e999", "NaN", "1" + "0" * 400, "-1"])
def test_a_start_at_no_time_is_one_at_an_unknown_time(tmp_path: Path, strange: str) -> None:
    spool = Spool(tmp_path, SpoolLimits())
    record = _written_exit(spool)
    record.with_name("started.json").write_text(f'{{"format": 1, "at": {strange}}}')
    record.write_text(json.dumps({**json.loads(record.read_text()), "started_at": "T"}).replace('"T"', strange))
    known = spool.load("r")
    assert known is not None
    assert known.started_at is None
    record.unlink()
    known = spool.load("r")
    assert known is not None
    assert (known.phase, known.started_at) == (RunPhase.RUNNING, None)


@pytest.mark.parametrize("position", ["1e999", "[]", "null"])
def test_a_file_of_progress_with_a_position_that_is_none_is_no_file(tmp_path: Path, position: str) -> None:
    files = ProgressFiles(tmp_path)
    files.save("r", Progress(running=True, position=5))
    whole = (tmp_path / "r.json").read_text()
    assert '"position": 5' in whole
    (tmp_path / "r.json").write_text(whole.replace('"position": 5', f'"position": {position}'))
    assert files.load("r") == Progress()


def _written_exit(spool: Spool) -> Path:
    directory = Path(spool.directory("r"))
    directory.mkdir(parents=True)
    spool.write_exit(
        RunReport(
            run_id="r",
            outcome=ReportOutcome.EXITED,
            cause=ExitCause.EXITED,
            exit_code=0,
            started_at=1.8e9,
            finished_at=1.8e9,
        )
    )
    return directory / "exit.json"


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + encodebytes(der) + b"-----END CERTIFICATE-----\n"
