"""Everything that was recorded of goiardi's HTTP side, sent to the shim again and compared by meaning.

Each row is either answered alike, or it is in ``differences`` with the answer that is given instead, or its rule is
tested where ``differences`` says. A label that is nowhere fails.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.chef_client import Answer, ChefClient, ConnectionDropped
from shovey_trio.core.chef.signing import SigningVersion
from shovey_trio.core.jobs.events import ReportOutcome
from shovey_trio.core.jobs.model import ProofKind, Role, StreamName
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.shovey.protocol.report import parse_run_put, parse_stream_put

from .conftest import RecordingReports, Shim, key_of, open_shim
from .differences import DIFFERENT, ELSEWHERE, VALUES, Difference, find

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent.parent / "golden" / "http.jsonl").read_text().splitlines()
]
USERS = {"admin": Role.ADMIN, "chef-validator": Role.VIEWER}
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
NO_TIME = "0001-01-01T00:00:00Z"
OUT, ERR = StreamName.STDOUT, StreamName.STDERR
# Texts that say the same in other words: what matters is that there is one.
TEXTS = {"error"}


class CheckingReports(RecordingReports):
    """Takes what a real one would take, as far as the body alone decides."""

    async def run_put(self, principal: Any, job_id: str, node: str, body: Mapping[str, object]) -> None:
        if body:
            parse_run_put(body)
        await super().run_put(principal, job_id, node, body)

    async def stream_put(self, principal: Any, job_id: str, node: str, body: Mapping[str, object]) -> None:
        parse_stream_put(body)
        await super().stream_put(principal, job_id, node, body)


class Replay:
    """Sends rows, and keeps which of our jobs stands for which recorded one."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.ours: dict[str, str] = {}
        self._sent = 0

    async def send(self, row: Mapping[str, Any]) -> Answer | None:
        """The answer; None when the connection was dropped."""
        if row["method"] == "POST" and row["path"] == "/shovey/jobs":
            self._prepare(row)
        for recorded in UUID.findall(row["path"] + row["request_body"]):
            if recorded not in self.ours and not recorded.startswith("00000000"):
                await self._make(recorded)
        path, body = self._translate(row["path"]), self._translate(row["request_body"])
        if body.startswith("<1000153 bytes"):
            body = json.dumps({"command": "hello", "nodes": ["foobar.local"], "pad": "x" * 1_000_100})
        try:
            answer = await self._send(row, path, body.encode())
        except ConnectionDropped:
            return None
        if answer.status == 200 and row["method"] == "POST" and row["path"] == "/shovey/jobs":
            if row["status"] == 200:
                self.ours[json.loads(row["response_body"])["id"]] = answer.json["id"]
            await self.shim.rig.ended(answer.json["id"])
        return answer

    async def _send(self, row: Mapping[str, Any], path: str, body: bytes) -> Answer:
        label, method = row["label"], row["method"]
        version = SigningVersion(row.get("auth") or "1.0")
        client = self._client(row.get("user") or "admin", version)
        if label.startswith("auth."):
            return await client.send(method, path, body, self._spoil(label, client, method, path, body))
        return await client.send(method, path, body, client.sign(method, path, body))

    def _client(self, user: str, version: SigningVersion = SigningVersion.V1_1) -> ChefClient:
        """Each request a second apart, because equal requests in one second are one request."""
        self._sent += 1
        offset = self._sent
        return self.shim.client(user, version=version, now=lambda: time.time() - offset)

    def _spoil(self, label: str, client: Any, method: str, path: str, body: bytes) -> dict[str, str]:
        """The headers of a row about authentication."""
        from dataclasses import replace

        shift = {"old16m": -960, "future16m": 960, "old14m": -840, "future14m": 840}
        for word, seconds in shift.items():
            if f".{word}." in label:
                client = replace(client, now=lambda seconds=seconds: time.time() + seconds)
        if "wrongkey" in label:
            client = replace(client, key=key_of("stranger"))
        headers: dict[str, str] = client.sign(method, path, body)
        if "badsig" in label:
            headers["X-Ops-Authorization-1"] = headers["X-Ops-Authorization-1"][::-1]
        if label == "auth.unsigned":
            headers = {"X-Ops-Userid": "admin"}
        if label == "auth.badhash":
            headers["X-Ops-Content-Hash"] = "x" + headers["X-Ops-Content-Hash"][1:]
        if label == "auth.ts.garbage":
            headers["X-Ops-Timestamp"] = "yesterday"
        if label.startswith("auth.xopssign="):
            headers["X-Ops-Sign"] = label.removeprefix("auth.xopssign=")
        if label.startswith("auth.missing "):
            missing = label.removeprefix("auth.missing ").lower()
            headers = {name: value for name, value in headers.items() if name.lower() != missing}
        if label == "auth.header0":
            headers["X-Ops-Authorization-0"] = "zork"
        if "web_source" in label:
            headers["X-Ops-Request-Source"] = "web"
        return headers

    async def _make(self, recorded: str) -> None:
        """A job like one whose start was not recorded."""
        self._script(recorded)
        jobs = [json.loads(row["response_body"]) for row in _about(recorded) if "command" in row["response_body"]]
        nodes = [name for names in jobs[0]["nodes"].values() for name in names] if jobs else ["foobar.local"]
        body = {"command": "hello", "nodes": nodes or ["neverseen.local"], "run_timeout": 300}
        if jobs:
            body |= {"command": jobs[0]["command"], "quorum": "100%" if not nodes else "0"}
        elif any(row["label"].startswith("qf.") for row in _about(recorded)):
            body["nodes"] = ["neverseen.local"]
        before = set((await self.shim.admin.get("/shovey/jobs")).json)
        await self._client("admin").post("/shovey/jobs", body)
        (self.ours[recorded],) = set((await self.shim.admin.get("/shovey/jobs")).json) - before
        await self.shim.rig.ended(self.ours[recorded])

    def _prepare(self, row: Mapping[str, Any]) -> None:
        self.shim.script()
        if row["status"] == 200:
            self._script(json.loads(row["response_body"])["id"])

    def _script(self, recorded: str) -> None:
        """Has the agents do what the recorded nodes did."""
        runs = [json.loads(row["response_body"]) for row in _about(recorded) if '"exit_status"' in row["response_body"]]
        jobs = [json.loads(row["response_body"]) for row in _about(recorded) if '"command"' in row["response_body"]]
        state = next((state for job in jobs for state in job["nodes"] if state != "down"), "succeeded")
        state = runs[-1]["status"] if runs else state
        run = runs[-1] if runs else {"output": "", "stderr": "", "exit_status": 0}
        output = tuple((stream, run[name].encode()) for stream, name in ((OUT, "output"), (ERR, "stderr")) if run[name])
        match state:
            case "nacked":
                self.shim.script(refuse=RefusalReason.NOT_WHITELISTED)
            case "invalid":
                self.shim.script(refuse=RefusalReason.BAD_SIGNATURE)
            case "failed" if not run["exit_status"]:
                proof = ProofKind.EMPTY_SUBREAPER
                self.shim.script(output=output, outcome=ReportOutcome.TIMED_OUT, exit_code=None, proof=proof)
            case _:
                self.shim.script(output=output, exit_code=run["exit_status"])

    def _translate(self, text: str) -> str:
        for recorded, ours in self.ours.items():
            text = text.replace(recorded, ours)
        return text

    def expected(self, row: Mapping[str, Any]) -> Any:
        """What was recorded, in terms of our jobs and our address."""
        text = self._translate(row["response_body"] or "null")
        text = text.replace("http://localhost:4646", f"http://127.0.0.1:{self.shim.server.port}")
        return _meaning(_parse(text)) | VALUES.get(row["label"], {}) if text[0] == "{" else _meaning(_parse(text))


def test_every_difference_is_about_something_that_was_recorded() -> None:
    labels = [row["label"] for row in ROWS]
    for table in (DIFFERENT, ELSEWHERE, VALUES):
        for key in table:
            assert any(find({key: True}, label) for label in labels), key


def test_every_difference_is_one() -> None:
    for row in ROWS:
        label = row["label"]
        difference, values = find(DIFFERENT, label), find(VALUES, label)
        if isinstance(difference, Difference):
            assert difference.status != row["status"], label
        if isinstance(values, dict):
            recorded = json.loads(row["response_body"])
            assert {name: recorded.get(name) for name in values} != values, label


async def test_recorded_exchanges_mean_the_same_here() -> None:
    wrong = []
    async with open_shim(up=("foobar.local", "second.local"), never_up="neverseen.local", users=USERS) as shim:
        shim.legacy.__class__ = CheckingReports
        replay = Replay(shim)
        for row in ROWS:
            label = row["label"]
            difference = find(DIFFERENT, label)
            if difference is None and find(ELSEWHERE, label):
                continue
            answer = await replay.send(row)
            status = difference.status if isinstance(difference, Difference) else row["status"]
            if answer is None or answer.status != status:
                wrong.append(f"{label}: {answer and (answer.status, answer.body[:200])} instead of {status}")
                continue
            if difference is not None and status >= 400 and row["method"] != "HEAD" and not answer.error:
                wrong.append(f"{label}: {status} without a reason")
            if difference is not None or row["method"] == "HEAD" or label.startswith("jobs.list"):
                continue
            ours, theirs = _meaning(_parse(answer.body.decode())), replay.expected(row)
            if label.startswith("auth.") and answer.status == 200:
                continue
            if not _alike(ours, theirs):
                wrong.append(f"{label}: {ours} instead of {theirs}")
    assert not wrong, "\n".join(wrong)


def _about(recorded: str) -> Iterator[Mapping[str, Any]]:
    for row in ROWS:
        if recorded in row["path"] and row["response_body"] and not find(ELSEWHERE, row["label"]):
            yield row


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"error": [text.strip()]}


def _meaning(value: Any) -> Any:
    """A value without what differs between any two runs: times are times, and the id of a job is one."""
    match value:
        case dict():
            return {key: _meaning(member) for key, member in value.items()}
        case list():
            return [_meaning(member) for member in value]
        case str() if value != NO_TIME and TIME.fullmatch(value):
            return "a time"
        case str():
            return UUID.sub("an id", value)
        case _:
            return value


def _alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict) and set(ours) >= set(theirs):
        extra = set(ours) - set(theirs)
        return not extra and all(_alike_member(key, ours[key], theirs[key]) for key in theirs)
    return bool(ours == theirs)


def _alike_member(name: str, ours: Any, theirs: Any) -> bool:
    if theirs is None:
        return True
    return bool(ours) == bool(theirs) if name in TEXTS else bool(ours == theirs)
