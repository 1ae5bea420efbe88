"""Listings: the same rows in every format."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from .conftest import OperatorRig

NODES = ["db-1", "db-2", "web-1", "web-2"]


def read(text: str, output: str) -> Any:
    match output:
        case "json":
            return json.loads(text)
        case "jsonl":
            return [json.loads(line) for line in text.splitlines()]
        case _:
            return yaml.safe_load(text)


@pytest.mark.parametrize("output", ["json", "jsonl", "yaml"])
async def test_nodes_for_programs(rig: OperatorRig, output: str) -> None:
    nodes = read((await rig.run("node", "list", "-o", output)).out, output)
    assert [node["name"] for node in nodes] == NODES
    assert nodes[1]["status"]["presence"] == "down"
    assert nodes[0]["link"] == "on_demand"
    assert nodes[0]["enrolled_at"] == "2023-11-14T22:13:20.000000Z"
    assert nodes[0]["tags"] == {"role": "db"}


async def test_nodes_as_a_table_and_as_names(rig: OperatorRig) -> None:
    table = [line.split() for line in (await rig.run("node", "list")).out.splitlines()]
    assert table[0] == ["NODE", "PRESENCE", "LINK", "VERSION", "LAST", "SEEN", "CLOCK", "TAGS"]
    assert [row[:3] for row in table[1:3]] == [["db-1", "up", "on-demand"], ["db-2", "down", "on-demand"]]
    assert (await rig.run("node", "list", "-o", "name")).out.split() == NODES


async def test_the_format_can_be_a_setting(rig: OperatorRig) -> None:
    done = await rig.run("node", "list", environ={"SHOVEY__CLIENT__OUTPUT": "name"})
    assert done.out.split() == NODES
    assert (await rig.run("node", "list", "-o", "json", environ={"SHOVEY__CLIENT__OUTPUT": "name"})).out[0] == "["


async def test_nodes_are_filtered_by_the_controller(rig: OperatorRig) -> None:
    done = await rig.run("node", "list", "--presence", "up", "--tag", "role=db", "-o", "name")
    assert done.out.split() == ["db-1"]


async def test_an_empty_listing_is_no_output_and_a_word_on_stderr(rig: OperatorRig) -> None:
    done = await rig.run("node", "list", "--tag", "role=mail")
    assert (done.code, done.out, done.err) == (0, "", "no nodes\n")
    assert json.loads((await rig.run("node", "list", "--tag", "role=mail", "-o", "json")).out) == []


async def test_node_status_of_all_says_why(rig: OperatorRig) -> None:
    rows = (await rig.run("node", "status")).out.splitlines()
    assert rows[2].split()[:3] == ["db-2", "down", "stream_lost"]
    assert rows[2].split()[-2:] == ["no", "alive"]


async def test_node_status_of_one_has_its_history(rig: OperatorRig) -> None:
    done = await rig.run("node", "status", "web-1")
    assert "presence  up since" in done.out
    assert "2023-11-14 22:13:20" in done.out
    document = json.loads((await rig.run("node", "status", "web-1", "-o", "json")).out)
    assert document["node"]["name"] == "web-1"
    assert [entry["reason"] for entry in document["history"]] == ["attached", "serf_failed"]
    one = await rig.run("node", "status", "web-1", "--limit", "1", "-o", "jsonl")
    assert [json.loads(line)["presence"] for line in one.out.splitlines()] == ["up"]


async def test_an_unknown_node_is_not_found(rig: OperatorRig) -> None:
    assert (await rig.run("node", "status", "web-9")).code == 3


async def test_jobs_are_listed_over_all_pages_newest_first(rig: OperatorRig) -> None:
    for _ in range(120):
        rig.controller.add_finished_job("hello", ["web-1"])
    newest_first = list(reversed(rig.controller.jobs))
    assert (await rig.run("job", "list", "--limit", "0", "-o", "name")).out.split() == newest_first
    assert (await rig.run("job", "list", "--limit", "101", "-o", "name")).out.split() == newest_first[:101]
    assert (await rig.run("job", "list", "-o", "name")).out.split() == newest_first[:50]


async def test_jobs_are_filtered(rig: OperatorRig) -> None:
    await rig.run("job", "start", "hello", "web-1")
    await rig.run("job", "start", "hello", "--all")
    failed = await rig.run("job", "list", "--state", "quorum_failed", "-o", "json")
    (job,) = json.loads(failed.out)
    assert job["cause"] == "quorum_not_met"
    assert job["finished_at"].endswith("Z")
    table = (await rig.run("job", "list", "--command", "hello", "--state", "complete")).out.splitlines()
    assert table[1].split()[1:5] == ["hello", "complete", "1/1", "user/tester"]


async def test_jobs_of_a_user_are_found_by_name(rig: OperatorRig) -> None:
    await rig.run("job", "start", "hello", "web-1")
    whole = (await rig.run("job", "list", "--by", "user/tester", "-o", "name")).out
    assert (await rig.run("job", "list", "--by", "tester", "-o", "name")).out == whole != ""
    assert (await rig.run("job", "list", "--by", "other", "-o", "name")).out == ""


async def test_job_status_has_the_job_and_its_runs(rig: OperatorRig) -> None:
    await rig.run("job", "start", "mixed", "web-1", "web-2")
    table = (await rig.run("job", "status", "last")).out
    assert "state     complete" in table
    assert [line.split()[:3] for line in table.splitlines()[-2:]] == [
        ["web-1", "succeeded", "0"],
        ["web-2", "failed", "3"],
    ]
    document = yaml.safe_load((await rig.run("job", "status", "last", "-o", "yaml")).out)
    assert document["job"]["run_counts"] == {"succeeded": 1, "failed": 1}
    assert document["runs"][0]["exit_code"] == 0
    assert document["runs"][0]["signal"] is None
    assert document["runs"][0]["stdout_bytes"] == 10
    assert (await rig.run("job", "status", "last", "-o", "name")).out.split() == ["web-1", "web-2"]


async def test_version_says_who_we_are(rig: OperatorRig) -> None:
    done = await rig.run("version")
    assert "controller  9.9.9" in done.out
    assert "you are     user/tester of org" in done.out
