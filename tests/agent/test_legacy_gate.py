"""Which Shovey orders the agent believes, and what it tells of those it does not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_agent.desk.nonces import open_nonces
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.run.runs import RunSpec
from shovey_agent.shovey.gate import LegacyGate, Refusal
from shovey_agent.shovey.schob_config import go_duration, is_schob_file, schob_settings
from shovey_agent.supervisor.proc_posix import elapsed_clock
from shovey_trio.core.errors import ConfigurationInvalid
from shovey_trio.shovey.protocol.report import PutStatus
from shovey_trio.shovey.protocol.wire import ShoveyOrder, cancel_fields, format_time, sign_payload, start_fields

_NOW = float(int(time.time()))


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


class Gate:
    """A gate on a state directory, opened again and again."""

    def __init__(self, directory: Path, key: RSAPrivateKey) -> None:
        self.directory = directory
        self.key = key
        (directory / "whitelist.json").write_text(json.dumps({"whitelist": {"hello": "echo hello"}}))
        self.write_key(key)

    def write_key(self, key: RSAPrivateKey) -> None:
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.directory / "key.pub").write_bytes(public)

    async def open(self) -> LegacyGate:
        return LegacyGate(
            node="n",
            public_key=self.directory / "key.pub",
            whitelist=WhitelistFile(self.directory / "whitelist.json"),
            runs=await open_nonces(self.directory / "runs", longest_life=8100.0),
            time_slew=900.0,
        )

    def start(self, run_id: str = "run-1", *, command: str = "hello", at: float = _NOW) -> bytes:
        time_ = format_time(at, utc_offset=0)
        return sign_payload(start_fields(job_id=run_id, command=command, run_timeout=30, time=time_), self.key)


@pytest.fixture
def gate(tmp_path: Path, key: RSAPrivateKey) -> Gate:
    return Gate(tmp_path, key)


async def _believed(gate: LegacyGate, payload: bytes) -> ShoveyOrder:
    order = await gate.believe(payload, now=_NOW)
    assert isinstance(order, ShoveyOrder)
    return order


async def _refused(gate: LegacyGate, payload: bytes, *, now: float = _NOW) -> Refusal:
    refusal = await gate.believe(payload, now=now)
    assert isinstance(refusal, Refusal)
    return refusal


async def test_a_good_order_becomes_what_the_whitelist_says(gate: Gate) -> None:
    opened = await gate.open()
    payload = gate.start()
    spec = await opened.admit(await _believed(opened, payload), payload, now=_NOW)
    assert isinstance(spec, RunSpec)
    assert (spec.run_id, spec.argv, spec.timeout) == ("run-1", ("echo", "hello"), 30.0)
    assert spec.ends_by is not None
    assert 0 < spec.ends_by - elapsed_clock() <= 30


async def test_a_run_is_admitted_once_however_it_is_signed_again_and_after_any_restart(gate: Gate) -> None:
    opened = await gate.open()
    payload = gate.start()
    assert isinstance(await opened.admit(await _believed(opened, payload), payload, now=_NOW), RunSpec)
    for again in (opened, await gate.open()):
        for copy in (payload, gate.start(at=_NOW + 5)):
            refusal = await again.admit(await _believed(again, copy), copy, now=_NOW)
            assert refusal == Refusal(run_id="run-1", put=None)


async def test_a_run_that_was_cancelled_first_never_starts(gate: Gate) -> None:
    opened = await gate.open()
    cancel = sign_payload(cancel_fields(job_id="run-1", time=format_time(_NOW, utc_offset=0)), gate.key)
    assert await opened.use_up(await _believed(opened, cancel), now=_NOW)
    payload = gate.start()
    assert isinstance(await opened.admit(await _believed(opened, payload), payload, now=_NOW), Refusal)


async def test_a_bad_signature_is_told_once_and_never_of_a_run_that_this_node_had(gate: Gate) -> None:
    opened = await gate.open()
    good = gate.start()
    await opened.admit(await _believed(opened, good), good, now=_NOW)
    tampered = good.replace(b"hello", b"hellp")
    assert (await _refused(opened, tampered)).put is None
    strange = gate.start("run-2").replace(b"hello", b"hellp")
    put = (await _refused(opened, strange)).put
    assert put is not None
    assert put.status is PutStatus.INVALID
    assert "could not be verified! crypto/rsa: verification error" in put.error
    assert (await _refused(opened, strange)).put is None


async def test_the_key_may_be_replaced_while_the_agent_runs(gate: Gate) -> None:
    opened = await gate.open()
    await _believed(opened, gate.start())
    gate.write_key(generate_private_key(public_exponent=65537, key_size=2048))
    await _refused(opened, gate.start())
    (gate.directory / "key.pub").write_text("no key")
    await _refused(opened, gate.start("run-3"))
    gate.write_key(gate.key)
    await _believed(opened, gate.start("run-4"))


async def test_an_old_order_is_refused_in_silence_and_one_from_the_future_is_told(gate: Gate) -> None:
    opened = await gate.open()
    assert (await _refused(opened, gate.start(at=_NOW - 901))).put is None
    put = (await _refused(opened, gate.start(at=_NOW + 901))).put
    assert put is not None
    assert put.status is PutStatus.INVALID
    for at in (_NOW - 899, _NOW + 899):
        await _believed(opened, gate.start(at=at))


async def test_what_is_not_whitelisted_is_nacked_in_schob_s_words(gate: Gate) -> None:
    opened = await gate.open()
    payload = gate.start(command="rm -rf /")
    refusal = await opened.admit(await _believed(opened, payload), payload, now=_NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.put is not None
    assert (refusal.put.status, refusal.put.error) == (PutStatus.NACKED, "command rm -rf / not in whitelist")


@pytest.mark.parametrize("payload", [b"", b"not json", b"{}", b"\xff" * 100, b"[]"])
async def test_what_is_no_order_is_nothing(gate: Gate, payload: bytes) -> None:
    assert await (await gate.open()).believe(payload, now=_NOW) is None


# --- schob's configuration ------------------------------------------------------------------------------------

_SCHOB = """
log-level = "critical"
endpoint = "http://chef.local:4545"
clientname = "foomer.local"
key-file = "/tmp/foomer.local.key"
whitelist = "test/whitelist.json"
sign-pub-key = "/tmp/goiardi/shovey.pem"
serf-addr = "127.0.0.1:7373"
time-slew = "1h30m"
queue-save-file = "/tmp/queue"
"""


def test_schob_s_own_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "schob.conf"
    file.write_text(_SCHOB)
    left, settings = schob_settings(file, {"endpoint": None, "node_name": "flag.local"}, legacy=True)
    assert left is None
    assert dict(settings) == {
        "agent.protocol": "shovey",
        "legacy.endpoint": "http://chef.local:4545",
        "legacy.node_name": "flag.local",
        "legacy.key_file": Path("/tmp/foomer.local.key"),
        "agent.whitelist": Path("test/whitelist.json").absolute(),
        "legacy.sign_pub_key": Path("/tmp/goiardi/shovey.pem"),
        "serf.address": "127.0.0.1:7373",
        "legacy.time_slew": 5400.0,
        "log.level": "error",
    }


def test_our_own_file_is_not_taken_for_schob_s(tmp_path: Path) -> None:
    file = tmp_path / "shovey-agent.toml"
    file.write_text('[agent]\nprotocol = "shovey"\n[legacy]\nendpoint = "http://x"\n')
    assert not is_schob_file(file)
    assert schob_settings(file, {}, legacy=True) == (file, [("agent.protocol", "shovey")])


def test_a_key_that_is_not_schob_s_is_named(tmp_path: Path) -> None:
    file = tmp_path / "schob.conf"
    file.write_text('endpoint = "x"\nendpiont = "y"\n')
    with pytest.raises(ConfigurationInvalid, match="endpiont"):
        schob_settings(file, {}, legacy=True)


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("150s", 150), ("1h30m", 5400), ("500ms", 0.5)])
def test_durations_are_go_s(text: str, seconds: float) -> None:
    assert go_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "15 m", "1d", "-5m"])
def test_what_is_no_duration_of_go_s_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationInvalid):
        go_duration(text)
