"""Restart anything, any time: agents and controllers that are killed, drained and started again while commands run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import Fleet, NodeSpec, open_fleet
from shovey_trio.demo.operator import Operator, is_terminal, job_state_of, open_operator, request, state_of
from shovey_trio.v1 import job_pb2, node_pb2

pytestmark = pytest.mark.slow

LINES = b"began\n" + b"".join(b"line %d\n" % n for n in range(1000))


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        whitelist = commands(str(directory))
        return [
            NodeSpec(name=name, whitelist=whitelist, settings={"reconnect.delay_max": "0.5s"}) for name in ("a", "b")
        ]

    with keep_fleet(nodes, serf=False, settings={"presence.stream_lost_after": "0.5s"}) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def clean(fleet: Fleet) -> Iterator[None]:
    """Closes the gate of ``held`` again, and forgets who went through."""
    yield
    for path in (*fleet.directory.glob("*.held"), fleet.directory / "go"):
        path.unlink(missing_ok=True)


@within(60)
async def test_a_command_outlives_its_killed_agent_and_runs_once(fleet: Fleet, operator: Operator) -> None:
    job_id = await operator.start("held", "a")
    await operator.lines(job_id, "a", 1)
    await fleet.nodes["a"].agent.kill()
    (fleet.directory / "go").touch()
    await fleet.nodes["a"].agent.start()
    finished = await operator.finished(job_id)
    assert (state_of(finished.runs["a"]), finished.runs["a"].exit_code) == ("failed", 7)
    assert await operator.output(job_id, "a") == LINES
    assert _times_held(fleet, "a") == 1
    await fleet.wait_up()


@within(60)
async def test_an_agent_that_is_stopped_leaves_its_commands_running(fleet: Fleet, operator: Operator) -> None:
    job_id = await operator.start("held", "a")
    await operator.lines(job_id, "a", 1)
    assert await fleet.nodes["a"].agent.stop() == 0
    await operator.reached(job_id, "a", "unknown")
    await fleet.nodes["a"].agent.start()
    await operator.reached(job_id, "a", "running")
    (fleet.directory / "go").touch()
    assert (await operator.finished(job_id)).runs["a"].exit_code == 7
    assert _times_held(fleet, "a") == 1
    await fleet.wait_up()


@within(60)
async def test_a_silent_node_is_down_and_its_run_unknown_until_it_speaks_again(
    fleet: Fleet, operator: Operator
) -> None:
    job_id = await operator.start("held", "a", "b")
    await operator.lines(job_id, "b", 1)
    await fleet.nodes["b"].agent.kill()
    unknown = await operator.reached(job_id, "b", "unknown")
    assert unknown.cause == "stream_lost"
    assert unknown.HasField("unknown_since")
    node = await operator.client.get_node("b")
    assert (node.status.presence, node.status.reason) == (node_pb2.NODE_PRESENCE_DOWN, "stream_lost")
    (fleet.directory / "go").touch()
    await operator.reached(job_id, "a", "failed")
    await fleet.nodes["b"].agent.start()
    finished = await operator.finished(job_id)
    assert finished.states() == {"a": "failed", "b": "failed"}
    assert await operator.output(job_id, "b") == LINES
    await fleet.wait_up()
    statuses = [status async for status in operator.client.list_node_statuses("b", page_size=2)]
    assert [status.reason for status in statuses][:2] == ["attached", "stream_lost"]
    assert len(statuses) >= 3


@within(60)
async def test_a_job_to_a_node_that_is_down_says_so_at_once(fleet: Fleet, operator: Operator) -> None:
    await fleet.nodes["b"].agent.stop()
    async with open_operator(fleet) as other:
        while (await other.client.get_node("b")).status.presence == node_pb2.NODE_PRESENCE_UP:  # noqa: ASYNC110
            await trio.sleep(0.05)
    refused = await operator.run("true", "a", "b")
    assert job_state_of(refused.job) == "quorum_failed"
    assert refused.states() == {"a": "unavailable", "b": "unavailable"}
    assert refused.runs["a"].cause == "quorum_failed"
    started = await operator.client.start_job(request("true", "a", "b", quorum="1"))
    finished = await operator.finished(started.job.id)
    assert (job_state_of(finished.job), finished.states()) == ("complete", {"a": "succeeded", "b": "unavailable"})
    assert finished.runs["b"].cause == "node_down"
    await fleet.nodes["b"].agent.start()
    await fleet.wait_up()


@within(90)
async def test_jobs_outlive_a_killed_controller_and_watchers_miss_nothing(fleet: Fleet, operator: Operator) -> None:
    job_id = await operator.start("held", "a", "b")
    for node in ("a", "b"):
        await operator.lines(job_id, node, 1)
    tokens: list[str] = []
    output = {"a": b"", "b": b""}
    ends: list[str] = []
    began = trio.Event()

    async def watch() -> None:
        async with operator.client.watch_job(job_id, include_output=True) as events:
            async for event in events:
                tokens.append(event.resume_token)
                if event.WhichOneof("event") == "output":
                    assert event.output.chunk.position == len(output[event.output.node])
                    output[event.output.node] += event.output.chunk.data
                elif event.WhichOneof("event") == "run_changed" and is_terminal(event.run_changed.run):
                    ends.append(event.run_changed.run.node)
                began.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await began.wait()
        await fleet.controller.kill()
        (fleet.directory / "go").touch()
        await fleet.controller.start()
    for node in ("a", "b"):
        whole = await operator.output(job_id, node)
        assert whole == LINES
        assert output[node] == LINES
        assert _times_held(fleet, node) == 1
    assert sorted(ends) == ["a", "b"]
    assert len(tokens) == len(set(tokens))
    assert (await operator.finished(job_id)).states() == {"a": "failed", "b": "failed"}
    await fleet.wait_up()


@within(60)
async def test_an_event_stream_that_is_resumed_by_token_goes_on_behind_it(operator: Operator) -> None:
    job_id = (await operator.run("hello")).job.id
    async with operator.client.watch_job(job_id, include_output=True) as events:
        whole = [event async for event in events]
    for index, event in enumerate(whole):
        async with operator.client.watch_job(job_id, include_output=True, resume_token=event.resume_token) as events:
            assert [event async for event in events] == whole[index + 1 :]


@within(90)
async def test_a_drained_controller_leaves_running_commands_to_its_next_start(fleet: Fleet, operator: Operator) -> None:
    job_id = await operator.start("held", "a", "b")
    await operator.lines(job_id, "a", 1)
    await operator.lines(job_id, "b", 1)
    assert await fleet.controller.stop() == 0
    (fleet.directory / "go").touch()
    await fleet.controller.start()
    finished = await operator.finished(job_id)
    assert finished.states() == {"a": "failed", "b": "failed"}
    assert [await operator.output(job_id, node) for node in ("a", "b")] == [LINES, LINES]
    await fleet.wait_up()


@within(60)
async def test_a_cancel_that_was_durable_is_carried_out_by_the_next_start(fleet: Fleet, operator: Operator) -> None:
    job_id = await operator.start("held", "a")
    await operator.lines(job_id, "a", 1)
    await fleet.nodes["a"].agent.kill()
    await operator.client.cancel_job(job_id)
    await fleet.controller.kill()
    await fleet.controller.start()
    await fleet.nodes["a"].agent.start()
    finished = await operator.finished(job_id)
    assert (finished.states(), job_state_of(finished.job)) == ({"a": "cancelled"}, "cancelled")
    await fleet.wait_up()


@within(60)
async def test_each_start_of_the_controller_has_a_higher_epoch(fleet: Fleet, operator: Operator) -> None:
    before = (await operator.client.get_server_info()).epoch
    await fleet.controller.stop()
    await fleet.controller.start()
    await fleet.wait_up()
    assert (await operator.client.get_server_info()).epoch > before
    assert (await operator.run("true")).states() == {"a": "succeeded", "b": "succeeded"}


def _times_held(fleet: Fleet, node: str) -> int:
    return len((fleet.directory / f"{node}.held").read_text().splitlines())


@within(110)
async def test_a_node_that_is_silent_for_too_long_loses_its_run_and_its_word_is_kept_beside_it(tmp_path: Path) -> None:
    settings = {"presence.stream_lost_after": "0.3s", "jobs.reconnect_grace": "0.5s"}
    node = NodeSpec(name="a", whitelist=commands(str(tmp_path)))
    async with open_fleet(tmp_path, [node], serf=False, settings=settings) as fleet, open_operator(fleet) as operator:
        job_id = await operator.start("held", "a")
        await operator.lines(job_id, "a", 1)
        await fleet.nodes["a"].agent.kill()
        run = (await operator.finished(job_id)).runs["a"]
        assert (state_of(run), run.cause) == ("crashed", "node_lost")
        (tmp_path / "go").touch()
        await fleet.nodes["a"].agent.start()
        while not (run := await operator.client.get_run(job_id, "a")).HasField("late_report"):  # noqa: ASYNC110
            await trio.sleep(0.05)
        # A terminal state never changes; what is true now stands beside it.
        assert state_of(run) == "crashed"
        assert (run.late_report.exit_code, run.late_report.state) == (7, job_pb2.RUN_STATE_FAILED)
        assert await operator.output(job_id, "a") == LINES
        assert fleet.noise() == []
