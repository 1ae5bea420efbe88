"""The main job on five real nodes with five real serf agents: attached and on demand mixed, and once all on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.core.errors import Code
from shovey_trio.demo.commands import ALL_BYTES, commands
from shovey_trio.demo.fleet import Fleet, NodeSpec
from shovey_trio.demo.operator import STDERR, STDOUT, Operator, job_state_of, names_of, request, state_of
from shovey_trio.rpc.bridge import RpcError
from shovey_trio.v1 import job_pb2

pytestmark = [pytest.mark.serf, pytest.mark.slow]

ATTACHED, ON_DEMAND = "attached", "on-demand"
NAMES = ("web-1", "web-2", "web-3", "db-1", "db-2")
LINKS = {
    "mixed": dict(zip(NAMES, (ATTACHED, ATTACHED, ON_DEMAND, ATTACHED, ON_DEMAND), strict=True)),
    "on-demand": dict.fromkeys(NAMES, ON_DEMAND),
}


@pytest.fixture(scope="module", params=list(LINKS))
def links(request: pytest.FixtureRequest) -> dict[str, str]:
    return LINKS[request.param]


@pytest.fixture(scope="module")
def fleet(links: dict[str, str], keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        whitelist = commands(str(directory))
        return [
            NodeSpec(
                name=name,
                link=link,
                tags={"role": name.partition("-")[0], "rack": name.partition("-")[2]},
                # One node is not trusted with everything.
                whitelist={**whitelist, "only-web": "true"} if name.startswith("web") else whitelist,
                settings={"reconnect.linger": "0.3s", "runs.output_cap": "1MiB"},
            )
            for name, link in links.items()
        ]

    with keep_fleet(nodes, serf=True) as fleet:
        yield fleet


@within(30)
async def test_output_arrives_byte_for_byte_on_both_streams(operator: Operator) -> None:
    finished = await operator.run("bytes")
    assert finished.states() == dict.fromkeys(NAMES, "succeeded")
    assert job_state_of(finished.job) == "complete"
    for node, run in finished.runs.items():
        assert await operator.output(finished.job.id, node, STDOUT) == ALL_BYTES
        assert await operator.output(finished.job.id, node, STDERR) == ALL_BYTES[::-1]
        assert (run.stdout_bytes, run.stderr_bytes, run.exit_code) == (256, 256, 0)


@within(30)
async def test_each_run_took_the_route_of_its_node(operator: Operator, links: dict[str, str]) -> None:
    finished = await operator.run("true")
    routes = {node: run.route for node, run in finished.runs.items()}
    expected = {ATTACHED: job_pb2.ROUTE_STREAM, ON_DEMAND: job_pb2.ROUTE_DOORBELL}
    for node, link in links.items():
        # An agent on demand that has not left yet is given its order on the stream.
        assert routes[node] == expected[link] or (link == ON_DEMAND and routes[node] == job_pb2.ROUTE_STREAM)


@within(30)
async def test_a_failure_on_one_node_is_that_nodes_alone(operator: Operator) -> None:
    finished = await operator.run("web-3-fails")
    assert finished.states() == {**dict.fromkeys(NAMES, "succeeded"), "web-3": "failed"}
    assert (finished.runs["web-3"].exit_code, finished.runs["web-3"].cause) == (3, "exited")


@within(30)
async def test_a_command_that_a_signal_ends_has_failed_by_that_signal(operator: Operator) -> None:
    run = (await operator.run("signal", "web-1", "web-3")).runs["web-3"]
    assert (state_of(run), run.signal, run.HasField("exit_code")) == ("failed", 10, False)


@within(30)
async def test_a_command_that_is_not_in_a_nodes_whitelist_is_nacked_by_it(operator: Operator) -> None:
    finished = await operator.run("only-web")
    assert finished.states() == {
        "web-1": "succeeded",
        "web-2": "succeeded",
        "web-3": "succeeded",
        "db-1": "nacked",
        "db-2": "nacked",
    }
    assert finished.runs["db-1"].cause == "not_whitelisted"


@within(40)
async def test_a_run_that_takes_too_long_is_timed_out_with_proof(operator: Operator) -> None:
    finished = await operator.run("stubborn", "web-1", "db-2", timeout=1.0, grace=0.5)
    assert finished.states() == {"web-1": "timed_out", "db-2": "timed_out"}
    assert all(run.proof != job_pb2.PROOF_KIND_UNSPECIFIED for run in finished.runs.values())
    assert await _alive(operator, finished.job.id, "web-1", "db-2") == []


@within(40)
async def test_cancelled_means_that_the_whole_process_tree_is_gone(operator: Operator) -> None:
    job_id = await operator.start("stubborn", grace=0.5)
    with_pids = [await operator.lines(job_id, node, 1) for node in NAMES]
    assert len(with_pids) == len(NAMES)
    answer = await operator.client.cancel_job(job_id)
    assert sorted(answer.cancelling) == sorted(NAMES)
    finished = await operator.finished(job_id)
    assert finished.states() == dict.fromkeys(NAMES, "cancelled")
    assert job_state_of(finished.job) == "cancelled"
    assert all(run.proof != job_pb2.PROOF_KIND_UNSPECIFIED for run in finished.runs.values())
    assert await _alive(operator, job_id, *NAMES) == []


@within(40)
async def test_cancelling_one_node_leaves_the_others_running(operator: Operator) -> None:
    job_id = await operator.start("stubborn", "web-1", "db-2", grace=0.2)
    await operator.reached(job_id, "db-2", "running")
    await operator.reached(job_id, "web-1", "running")
    await operator.client.cancel_job(job_id, ["db-2"])
    await operator.reached(job_id, "db-2", "cancelled")
    assert state_of(await operator.client.get_run(job_id, "web-1")) == "running"
    second = await operator.client.cancel_job(job_id)
    assert (list(second.cancelling), list(second.already_finished)) == (["web-1"], ["db-2"])
    assert (await operator.finished(job_id)).states() == {"web-1": "cancelled", "db-2": "cancelled"}


@within(30)
@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [
        (request("true", "web-1", "nobody", "no-one"), Code.NOT_FOUND, "UNKNOWN_NODES"),
        (request("true", match="mail-*"), Code.INVALID_ARGUMENT, "NO_TARGETS"),
        (request("true", tags={"role": "mail"}), Code.INVALID_ARGUMENT, "NO_TARGETS"),
        (request("true", "web-1", quorum="2"), Code.INVALID_ARGUMENT, "INVALID_QUORUM"),
        (request("true", "web-1", quorum="101%"), Code.INVALID_ARGUMENT, "INVALID_QUORUM"),
        (request("", "web-1"), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
    ids=["unknown-node", "no-match", "no-tags", "impossible-count", "impossible-share", "no-command"],
)
async def test_a_request_that_cannot_be_meant_is_refused_with_its_reason(
    operator: Operator, asked: Any, code: Code, reason: str
) -> None:
    before = (await operator.client.get_server_info()).jobs_running
    with pytest.raises(RpcError) as caught:
        await operator.client.start_job(asked)
    assert (caught.value.code, caught.value.reason) == (code, reason)
    if reason == "UNKNOWN_NODES":
        assert set(caught.value.metadata["nodes"].split(",")) == {"nobody", "no-one"}
    assert (await operator.client.get_server_info()).jobs_running == before


@within(30)
async def test_an_empty_list_of_nodes_is_refused(operator: Operator) -> None:
    asked = request("true", "web-1")
    del asked.target.nodes.names[:]
    with pytest.raises(RpcError) as caught:
        await operator.client.start_job(asked)
    assert caught.value.reason == "NO_TARGETS"


@within(30)
async def test_tags_patterns_and_all_select_their_nodes(operator: Operator) -> None:
    async def selected(asked: Any) -> list[str]:
        job_id = (await operator.client.start_job(asked)).job.id
        return names_of(list((await operator.finished(job_id)).runs.values()))

    assert await selected(request("true", tags={"role": "db"})) == ["db-1", "db-2"]
    assert await selected(request("true", tags={"role": "db", "rack": "2"})) == ["db-2"]
    assert await selected(request("true", match="web-[13]")) == ["web-1", "web-3"]
    assert await selected(request("true")) == sorted(NAMES)


@within(30)
async def test_a_dry_run_shows_the_targets_and_starts_nothing(operator: Operator) -> None:
    newest = await anext(aiter(operator.client.list_jobs(page_size=1)))
    answer = await operator.client.start_job(request("true", match="web-*", dry_run=True))
    assert [(target.node, target.up) for target in answer.targets] == [
        ("web-1", True),
        ("web-2", True),
        ("web-3", True),
    ]
    assert all(target.route != job_pb2.ROUTE_UNSPECIFIED for target in answer.targets)
    assert (await anext(aiter(operator.client.list_jobs(page_size=1)))).id == newest.id


@within(60)
async def test_output_over_the_cap_keeps_its_head_and_its_tail_and_says_what_is_gone(operator: Operator) -> None:
    finished = await operator.run("flood", "web-1", "web-3")
    for node, run in finished.runs.items():
        text = await operator.output(finished.job.id, node)
        lines = text.splitlines()
        assert state_of(run) == "succeeded"
        assert lines[0] == b"0" * 15
        assert lines[-1] == b"%015d" % 524287
        assert run.dropped_bytes > 0
        assert run.dropped_bytes + len(text) == 8 * 2**20
        assert len(text) < 3 * 2**20
        async with operator.client.read_output(finished.job.id, node) as answers:
            [tail] = [answer.chunk async for answer in answers if answer.chunk.dropped_before]
        assert tail.dropped_before == run.dropped_bytes
        # What was left out is as much as stood between what is before the hole and what is behind it.
        assert text[tail.position :].splitlines()[1] == b"%015d" % ((tail.position + run.dropped_bytes) // 16 + 1)


@within(60)
async def test_no_order_is_missed_by_an_agent_that_is_leaving(operator: Operator) -> None:
    for attempt in range(15):
        assert (await operator.run("true", "db-2")).states() == {"db-2": "succeeded"}
        # Before, while and after it takes its leave: it lingers for 0.3 s.
        await trio.sleep(0.24 + 0.01 * attempt)


@within(30)
async def test_back_to_back_jobs_on_one_node_all_run(operator: Operator) -> None:
    for _ in range(30):
        assert (await operator.run("true", "web-3")).states() == {"web-3": "succeeded"}


@within(30)
async def test_the_server_says_what_it_sees_of_serf(operator: Operator) -> None:
    info = await operator.client.get_server_info()
    assert (info.serf.configured, info.serf.connected, info.serf.members_alive) == (True, True, 6)
    assert list(info.unaddressable_nodes) == []
    assert info.caller == "user/admin"


@within(30)
async def test_a_change_of_the_whitelist_counts_from_the_next_order_on(fleet: Fleet, operator: Operator) -> None:
    node = fleet.nodes["db-1"]
    before = node.whitelist.read_text()
    assert (await operator.run("brand-new", "db-1")).states() == {"db-1": "nacked"}
    changed = json.loads(before)
    changed["whitelist"]["brand-new"] = "true"
    fresh = node.whitelist.with_suffix(".new")
    fresh.write_text(json.dumps(changed))
    fresh.replace(node.whitelist)
    assert (await operator.run("brand-new", "db-1")).states() == {"db-1": "succeeded"}
    # One that is broken leaves the last good one in force.
    node.whitelist.write_text("{")
    assert (await operator.run("brand-new", "db-1")).states() == {"db-1": "succeeded"}
    node.whitelist.write_text(before)


async def _alive(operator: Operator, job_id: str, *nodes: str) -> list[int]:
    """The processes of a job of ``stubborn`` that are there still."""
    outputs = [await operator.output(job_id, node) for node in nodes]
    pids = [int(word) for output in outputs for word in output.splitlines()[0].split()]
    assert len(pids) == 2 * len(nodes)
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
