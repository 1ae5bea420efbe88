"""Jobs through the shim, and the traps that knife sets."""

from __future__ import annotations

import base64
import itertools

import pytest
import trio

from lab.chef_client import ChefClient
from lab.fake_agents import OnCancel
from shovey_trio.core.chef.signing import SigningVersion
from shovey_trio.core.errors import DuplicateChunk
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.orders import OrderKind, RefusalReason
from shovey_trio.shovey.kind import SchobTiming
from shovey_trio.shovey.rest import job_routes
from shovey_trio.shovey.rest.job_routes import JobPolicy

from .conftest import NEVER_UP, WEB, Shim, key_of, open_shim
from .differences import UNRECORDED, Unrecorded

OUT, ERR = StreamName.STDOUT, StreamName.STDERR


async def test_started_job_is_told_by_id_and_uri_of_the_form_that_was_used(shim: Shim) -> None:
    for prefix in ("", "/organizations/default"):
        answer = await shim.admin.post(f"{prefix}/shovey/jobs", {"command": f"work{prefix[:1]}", "nodes": ["web-1"]})
        assert answer.status == 200
        assert answer.json["uri"] == f"http://127.0.0.1:{shim.server.port}{prefix}/shovey/jobs/{answer.json['id']}"
        assert answer.json["uri"][-36:] == answer.json["id"]
        assert answer.headers["content-type"] == "application/json"
        assert answer.body.endswith(b"\n")


async def test_job_and_run_look_as_recorded(shim: Shim) -> None:
    shim.script(output=((OUT, b"hello\n"), (ERR, b"oops\n")), exit_code=3)
    job_id = await shim.settled("web-1", run_timeout=30)
    job = (await shim.admin.get(f"/shovey/jobs/{job_id}")).json
    assert job == {
        "command": "work",
        "created_at": job["created_at"],
        "id": job_id,
        "nodes": {"failed": ["web-1"]},
        "run_timeout": 30,
        "status": "complete",
        "updated_at": job["updated_at"],
    }
    run = (await shim.admin.get(f"/shovey/jobs/{job_id}/web-1")).json
    assert run == {
        "ack_time": run["ack_time"],
        "end_time": run["end_time"],
        "error": "exit status 3",
        "exit_status": 3,
        "node_name": "web-1",
        "output": "hello\n",
        "run_id": job_id,
        "status": "failed",
        "stderr": "oops\n",
    }
    assert job["created_at"] < run["ack_time"] <= run["end_time"] <= job["updated_at"]


async def test_list_is_sorted_ids(shim: Shim) -> None:
    assert (await shim.admin.get("/shovey/jobs")).json == []
    made = [await shim.settled("web-1", run_timeout=30 + number) for number in range(3)]
    assert (await shim.admin.get("/shovey/jobs")).json == sorted(made)


@pytest.mark.parametrize(
    ("quorum", "status"),
    [(1, 200), (2, 400), ("1", 200), ("50%", 200), ("33.3%", 200), ("51%", 400), (1.0, 200), (1.5, 400), (0, 200)],
)
async def test_quorum_may_be_a_number_or_text_and_is_obeyed(shim: Shim, quorum: object, status: int) -> None:
    body = {"command": "work", "nodes": ["web-1", NEVER_UP], "quorum": quorum}
    assert (await shim.admin.post("/shovey/jobs", body)).status == status


@pytest.mark.parametrize("quorum", ["", "x", "-1", -1, "NaN", "inf", "101%", True, {}, [], "3", 3, " 1"])
async def test_quorum_that_makes_no_sense_is_400_and_starts_nothing(shim: Shim, quorum: object) -> None:
    answer = await shim.admin.post("/shovey/jobs", {"command": "work", "nodes": ["web-1"], "quorum": quorum})
    assert (answer.status, (await shim.admin.get("/shovey/jobs")).json) == (400, [])


async def test_job_that_fails_its_quorum_is_400_and_kept_without_runs(shim: Shim) -> None:
    answer = await shim.admin.post("/shovey/jobs", {"command": "work", "nodes": ["web-1", NEVER_UP]})
    (job_id,) = (await shim.admin.get("/shovey/jobs")).json
    assert answer.status == 400
    assert answer.error.startswith(f"Not enough nodes were up to execute job {job_id} - ")
    job = (await shim.admin.get(f"/shovey/jobs/{job_id}")).json
    assert (job["status"], job["nodes"]) == ("quorum_failed", {})
    run = await shim.admin.get(f"/shovey/jobs/{job_id}/web-1")
    assert (run.status, run.error) == (404, f"run {job_id} for node web-1 not found")
    assert shim.agents["web-1"].orders == []


async def test_unknown_node_is_a_down_run_and_no_error(shim: Shim) -> None:
    job_id = await shim.settled("web-1", "nope.example", quorum="50%")
    job = (await shim.admin.get(f"/shovey/jobs/{job_id}")).json
    assert job["nodes"] == {"down": ["nope.example"], "succeeded": ["web-1"]}
    run = (await shim.admin.get(f"/shovey/jobs/{job_id}/nope.example")).json
    assert (run["status"], run["ack_time"]) == ("down", "0001-01-01T00:00:00Z")


async def test_node_named_twice_runs_once(shim: Shim) -> None:
    job_id = await shim.settled("web-1", "web-1")
    assert (await shim.admin.get(f"/shovey/jobs/{job_id}")).json["nodes"] == {"succeeded": ["web-1"]}


@pytest.mark.parametrize(("quorum", "status"), [(2, 200), ("2", 200), (3, 400)])
async def test_quorum_that_counts_names_is_met_by_a_node_named_twice(shim: Shim, quorum: object, status: int) -> None:
    body = {"command": "work", "nodes": ["web-1", "web-1"], "quorum": quorum}
    assert (await shim.admin.post("/shovey/jobs", body)).status == status


@pytest.mark.parametrize("unrecorded", UNRECORDED, ids=lambda unrecorded: unrecorded.what)
async def test_unrecorded_difference_from_goiardi_is_as_listed(shim: Shim, unrecorded: Unrecorded) -> None:
    answer = await shim.admin.request(unrecorded.method, unrecorded.path, unrecorded.body.encode())
    assert answer.status == unrecorded.ours.status


async def test_cancel_of_a_job_whose_quorum_failed_is_404(shim: Shim) -> None:
    assert (await shim.admin.post("/shovey/jobs", {"command": "work", "nodes": ["web-1", NEVER_UP]})).status == 400
    (job_id,) = (await shim.admin.get("/shovey/jobs")).json
    answer = await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": []})
    assert (answer.status, job_id in answer.error) == (404, True)


@pytest.mark.parametrize(("given", "shown"), [(7, 7), ("7", 7), (2.9, 2.9), (None, 300)])
async def test_run_timeout_in_every_form_is_obeyed(shim: Shim, given: object, shown: float) -> None:
    job_id = await shim.settled("web-1", run_timeout=given)
    assert (await shim.admin.get(f"/shovey/jobs/{job_id}")).json["run_timeout"] == shown
    assert shim.agents["web-1"].orders[0].run_timeout == shown


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"{} x",
        b'{"nodes":["web-1"]}',
        b'{"command":5,"nodes":["web-1"]}',
        b'{"command":"","nodes":["web-1"]}',
        b'{"command":"work"}',
        b'{"command":"work","nodes":[]}',
        b'{"command":"work","nodes":"web-1"}',
        b'{"command":"work","nodes":[1]}',
        b'{"command":"work","nodes":["web-1"],"run_timeout":0}',
        b'{"command":"work","nodes":["web-1"],"run_timeout":-5}',
        b'{"command":"work","nodes":["web-1"],"run_timeout":"soon"}',
        b'{"command":"work","nodes":["web-1"],"run_timeout":true}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
async def test_body_that_makes_no_sense_is_400_with_a_reason(shim: Shim, body: bytes) -> None:
    answer = await shim.admin.request("POST", "/shovey/jobs", body)
    assert answer.status == 400
    assert answer.error
    assert (await shim.admin.get("/shovey/jobs")).json == []


async def test_repeated_request_starts_one_job(shim: Shim) -> None:
    body = b'{"command":"work","nodes":["web-1"]}'
    headers = shim.admin.sign("POST", "/shovey/jobs", body)
    answers = []

    async def send() -> None:
        answers.append(await shim.admin.send("POST", "/shovey/jobs", body, headers))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(send)
    await send()
    assert {answer.json["id"] for answer in answers} == set((await shim.admin.get("/shovey/jobs")).json)
    assert len(shim.agents["web-1"].orders) == 1


@pytest.mark.parametrize("version", [SigningVersion.V1_0, SigningVersion.V1_1])
async def test_a_signature_without_its_leading_zero_byte_is_the_same_request(
    shim: Shim, version: SigningVersion
) -> None:
    client = shim.client("admin", version=version)
    for run_timeout in itertools.count(1):  # one in 256 begins with a zero byte
        body = b'{"command":"work","nodes":["web-1"],"run_timeout":%d}' % run_timeout
        headers = client.sign("POST", "/shovey/jobs", body)
        raw = base64.b64decode("".join(headers[name] for name in sorted(headers, key=_line) if _line(name)))
        if raw[0] == 0:
            break
    shorter = base64.b64encode(raw[1:]).decode()
    rest = {name: value for name, value in headers.items() if not _line(name)}
    parts = [shorter[start : start + 60] for start in range(0, len(shorter), 60)]
    changed = rest | {f"X-Ops-Authorization-{number}": part for number, part in enumerate(parts, start=1)}
    first = await shim.admin.send("POST", "/shovey/jobs", body, headers)
    second_answer = await shim.admin.send("POST", "/shovey/jobs", body, changed)
    assert (first.status, second_answer.status) == (200, 200)
    assert first.json["id"] == second_answer.json["id"]
    assert (await shim.admin.get("/shovey/jobs")).json == [first.json["id"]]


async def test_equal_requests_of_two_users_are_two_jobs(shim: Shim) -> None:
    for user in ("admin", "ops"):
        await shim.client(user).post("/shovey/jobs", {"command": "work", "nodes": ["web-1"]})
    assert len((await shim.admin.get("/shovey/jobs")).json) == 2


async def test_job_that_is_not_over_is_never_called_anything_but_running(shim: Shim) -> None:
    shim.script(run_for=None)
    job_id = await shim.start()
    seen = set()
    for state in (RunState.RUNNING, RunState.UNKNOWN):
        if state is RunState.UNKNOWN:
            for agent in shim.agents.values():
                agent.disconnect()
        else:
            await shim.until(job_id, "web-1", state)
        seen.add((await shim.admin.get(f"/shovey/jobs/{job_id}")).json["status"])
    assert seen == {"running"}


async def test_cancel_waits_for_the_proof_and_answers_with_it(shim: Shim) -> None:
    shim.script(run_for=None)
    job_id = await shim.start()
    await shim.until(job_id, "web-1", RunState.RUNNING)
    await shim.until(job_id, "web-2", RunState.RUNNING)
    answer = await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": [], "kill_timeout": "5"})
    assert answer.status == 200
    assert (answer.json["status"], answer.json["nodes"]) == ("cancelled", {"cancelled": list(WEB)})


@pytest.mark.parametrize(("given", "seconds"), [("5", 5.0), (7, 7.0), (None, 10.0)])
async def test_kill_timeout_may_be_text_and_goes_to_the_node(shim: Shim, given: object, seconds: float) -> None:
    shim.script(run_for=None)
    job_id = await shim.start("web-1")
    await shim.until(job_id, "web-1", RunState.RUNNING)
    await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": ["web-1"], "kill_timeout": given})
    (order,) = shim.agents["web-1"].orders_of(OrderKind.CANCEL)
    assert order.kill_grace == seconds


@pytest.mark.parametrize("given", ["soon", -1, True, 1e9])
async def test_kill_timeout_that_makes_no_sense_is_400_and_nothing_is_cancelled(shim: Shim, given: object) -> None:
    shim.script(run_for=None)
    job_id = await shim.start("web-1")
    body = {"run_id": job_id, "nodes": [], "kill_timeout": given}
    assert (await shim.admin.put("/shovey/jobs/cancel", body)).status == 400
    assert not (await shim.rig.run(job_id, "web-1")).cancelling


async def test_cancel_that_is_not_proven_in_time_answers_truly_with_an_empty_list() -> None:
    async with open_shim(cancel_wait=0.2) as shim:
        shim.script(run_for=None, on_cancel=OnCancel.IGNORE)
        job_id = await shim.start("web-1")
        await shim.until(job_id, "web-1", RunState.RUNNING)
        answer = await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id})
        assert (answer.json["status"], answer.json["nodes"]) == ("running", {"cancelled": [], "running": ["web-1"]})


async def test_cancel_is_waited_for_until_it_is_known_what_became_of_it(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a schob, which is the last to be known; without a setting, and never beyond knife's patience."""
    schob = SchobTiming().cancel
    assert schob < job_routes._BEHIND_GRACE
    assert JobPolicy().cancel_wait < 300
    monkeypatch.setattr(job_routes, "_BEHIND_GRACE", 0.2)
    shim.script(run_for=None, on_cancel=OnCancel.IGNORE)
    job_id = await shim.start("web-1")
    await shim.until(job_id, "web-1", RunState.RUNNING)
    before = trio.current_time()
    await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "kill_timeout": "0.5"})
    assert 0.7 <= trio.current_time() - before < 5


async def test_cancel_of_one_node_leaves_the_others_and_the_job_is_complete_in_the_end(shim: Shim) -> None:
    shim.script(run_for=None)
    job_id = await shim.start()
    for node in WEB:
        await shim.until(job_id, node, RunState.RUNNING)
    first = await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": ["web-2"]})
    assert (first.json["status"], first.json["nodes"]) == ("running", {"cancelled": ["web-2"], "running": ["web-1"]})
    await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": ["web-1"]})
    await shim.rig.ended(job_id)
    assert (await shim.admin.get(f"/shovey/jobs/{job_id}")).json["status"] == "complete"


async def test_cancel_of_a_finished_job_changes_nothing_and_says_so(shim: Shim) -> None:
    job_id = await shim.settled("web-1")
    before = (await shim.admin.get(f"/shovey/jobs/{job_id}")).json
    answer = await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": []})
    assert answer.status == 200
    assert answer.json == {**before, "nodes": {"cancelled": [], "succeeded": ["web-1"]}}


async def test_cancel_of_what_is_not_there_is_404(shim: Shim) -> None:
    missing = "00000000-0000-0000-0000-000000000000"
    answer = await shim.admin.put("/shovey/jobs/cancel", {"run_id": missing, "nodes": []})
    assert (answer.status, answer.error) == (404, f"shovey job {missing} not found")
    shim.script(run_for=None)
    job_id = await shim.start("web-1")
    answer = await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id, "nodes": ["nope.example"]})
    assert answer.status == 404
    assert "nope.example" in answer.error
    assert not (await shim.rig.run(job_id, "web-1")).cancelling


@pytest.mark.parametrize(
    ("body", "text"),
    [({"run_id": 5}, "No shovey run ID"), ({}, "No shovey run ID"), ({"run_id": "x", "nodes": "y"}, "not an array")],
)
async def test_cancel_that_makes_no_sense_is_400(shim: Shim, body: object, text: str) -> None:
    answer = await shim.admin.put("/shovey/jobs/cancel", body)
    assert answer.status == 400
    assert text in answer.error


async def test_refused_command_is_a_nacked_run(shim: Shim) -> None:
    shim.script(refuse=RefusalReason.NOT_WHITELISTED)
    job_id = await shim.settled("web-1")
    assert (await shim.admin.get(f"/shovey/jobs/{job_id}")).json["nodes"] == {"nacked": ["web-1"]}


async def test_what_cannot_be_stored_is_503_and_not_started_and_the_repeat_starts_it(shim: Shim) -> None:
    body = b'{"command":"work","nodes":["web-1"]}'
    headers = shim.admin.sign("POST", "/shovey/jobs", body)
    shim.store.fail("disk full")
    assert (await shim.admin.send("POST", "/shovey/jobs", body, headers)).status == 503
    shim.store.heal()
    assert (await shim.admin.send("POST", "/shovey/jobs", body, headers)).status == 200
    assert len((await shim.admin.get("/shovey/jobs")).json) == 1


@pytest.mark.parametrize("trouble", ["draining", "store", "node gone"])
async def test_repeat_of_a_request_whose_job_exists_gets_it_and_no_5xx(shim: Shim, trouble: str) -> None:
    shim.script(run_for=None)
    body = b'{"command":"work","nodes":["web-1"]}'
    headers = shim.admin.sign("POST", "/shovey/jobs", body)
    first = await shim.admin.send("POST", "/shovey/jobs", body, headers)
    match trouble:
        case "draining":
            shim.rig.supervisor.draining = True
        case "store":
            shim.store.fail("disk full")
        case _:
            await shim.store.remove_node("default", "web-1")
            assert [node.name for node in await shim.rig.registry.load_changes()] == ["web-1"]
    again = await shim.admin.send("POST", "/shovey/jobs", body, headers)
    assert (again.status, again.body) == (first.status, first.body) == (200, first.body)
    if trouble != "node gone":
        other = await shim.admin.post("/shovey/jobs", {"command": "other", "nodes": ["web-1"]})
        assert other.status == 503


async def test_node_reports_its_own_run_and_output(shim: Shim) -> None:
    job_id = await shim.start("web-1")
    node = shim.client("web-1")
    report = await node.put(f"/shovey/jobs/{job_id}/web-1", {"status": "running"})
    assert (report.status, report.json) == (200, {"id": job_id, "node": "web-1", "response": "ok"})
    piece = await node.put(f"/organizations/default/shovey/stream/{job_id}/web-1", {"seq": 0})
    assert (piece.status, piece.json) == (200, {"response": "ok"})
    assert [(call[1:]) for call in shim.legacy.runs] == [(job_id, "web-1", {"status": "running"})]
    assert [(call[1:]) for call in shim.legacy.streams] == [(job_id, "web-1", {"seq": 0})]


async def test_duplicate_chunk_is_409(shim: Shim) -> None:
    shim.legacy.error = DuplicateChunk("sequence 0 for x - web-1 already exists", seq="0")
    answer = await shim.client("web-1").put("/shovey/stream/x/web-1", {"seq": 0})
    assert (answer.status, answer.error) == (409, "sequence 0 for x - web-1 already exists")


async def test_key_is_shown_to_everybody_and_reset_by_admins(shim: Shim) -> None:
    assert (await shim.client("web-1").get("/shovey/key")).json == {"public_key": shim.legacy.key}
    assert (await shim.client("ops").post("/shovey/key/reset", {})).status == 403
    answer = await shim.admin.post("/organizations/default/shovey/key/reset", {})
    assert (answer.status, "two" in answer.json["public_key"]) == (200, True)


async def test_repeated_key_reset_is_the_same_request(shim: Shim) -> None:
    path = "/shovey/key/reset"
    headers = shim.admin.sign("POST", path, b"{}")
    statuses = [(await shim.admin.send("POST", path, b"{}", headers)).status for _ in range(2)]
    assert (statuses, len(shim.legacy.resets)) == ([200, 200], 1)


async def test_error_of_ours_is_500_without_its_text(shim: Shim) -> None:
    shim.legacy.error = RuntimeError("secret")
    answer = await shim.client("web-1").put("/shovey/stream/x/web-1", {"seq": 0})
    assert (answer.status, b"secret" in answer.body) == (500, False)


async def test_responses_have_the_headers_that_chef_clients_look_for(shim: Shim) -> None:
    headers = (await shim.admin.get("/shovey/jobs")).headers
    assert headers["x-chef-version"]
    assert headers["x-ops-api-info"].startswith("flavor=osc;version:")
    assert '"response_version": "2"' in headers["x-ops-server-api-version"]


async def test_draining_refuses_jobs_with_503(shim: Shim) -> None:
    shim.rig.supervisor.draining = True
    answer = await shim.admin.post("/shovey/jobs", {"command": "work", "nodes": ["web-1"]})
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")


async def test_client_without_a_host_of_its_own_gets_a_relative_uri(shim: Shim) -> None:
    client = ChefClient(port=shim.server.port, user="admin", key=key_of("admin"))
    body = b'{"command":"work","nodes":["web-1"]}'
    headers = client.sign("POST", "/shovey/jobs", body)
    async with await trio.open_tcp_stream("127.0.0.1", shim.server.port) as stream:
        lines = ["POST /shovey/jobs HTTP/1.0", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
        received = b""
        while data := await stream.receive_some():
            received += data
    assert b'"uri":"/shovey/jobs/' in received


def _line(name: str) -> int:
    """The number of a header that holds a line of the signature; 0 of any other."""
    return int(name.rpartition("-")[2]) if name.startswith("X-Ops-Authorization-") else 0
