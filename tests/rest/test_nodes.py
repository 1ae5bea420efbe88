"""Node status and search through the shim."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest

from .conftest import NEVER_UP, WEB, Shim


async def test_status_of_all_nodes_looks_as_recorded(shim: Shim) -> None:
    answer = (await shim.admin.get("/status/all/nodes")).json
    assert [(entry["node_name"], entry["status"]) for entry in answer] == [
        (NEVER_UP, "new"),
        *((name, "up") for name in WEB),
    ]
    assert answer[1] == {
        "node_name": "web-1",
        "status": "up",
        "updated_at": answer[1]["updated_at"],
        "url": f"http://127.0.0.1:{shim.server.port}/status/node/web-1/latest",
    }
    assert len(answer[1]["updated_at"]) == len("2026-11-22T03:48:00Z")


async def test_status_of_one_node_looks_as_recorded(shim: Shim) -> None:
    answer = (await shim.admin.get(f"/organizations/default/status/node/{NEVER_UP}/latest")).json
    assert answer == {"node_name": NEVER_UP, "status": "new", "updated_at": answer["updated_at"]}


async def test_history_is_a_list_newest_first(shim: Shim) -> None:
    node = shim.rig.registry.get("default", "web-1")
    assert node is not None
    for agent in shim.agents.values():
        agent.disconnect()
    answer = (await shim.admin.get("/status/node/web-1/all")).json
    assert all(set(entry) == {"node_name", "status", "updated_at"} for entry in answer)
    assert answer == sorted(answer, key=lambda entry: entry["updated_at"], reverse=True)


async def test_history_begins_with_the_registration(shim: Shim) -> None:
    answer = (await shim.admin.get(f"/status/node/{NEVER_UP}/all")).json
    assert [entry["status"] for entry in answer] == ["new"]


@pytest.mark.parametrize("which", ["latest", "all"])
async def test_unknown_node_is_404(shim: Shim, which: str) -> None:
    answer = await shim.admin.get(f"/status/node/nope/{which}")
    assert (answer.status, answer.error) == (404, "node 'nope' not found")
    assert (await shim.admin.request("HEAD", f"/status/node/nope/{which}")).status == 404


async def test_nodes_are_names_with_urls(shim: Shim) -> None:
    answer = (await shim.admin.get("/organizations/default/nodes")).json
    assert sorted(answer) == sorted((NEVER_UP, *WEB))
    assert answer["web-1"].endswith("/organizations/default/nodes/web-1")


async def test_search_answers_with_rows_of_names(shim: Shim) -> None:
    answer = await shim.admin.get(f"/search/node?q={quote('name:web-*')}&sort=X_CHEF_id_CHEF_X%20asc&start=0&rows=1000")
    assert answer.json == {"rows": [{"name": "web-1"}, {"name": "web-2"}], "start": 0, "total": 2}


async def test_search_query_that_knife_escaped_twice_is_understood(shim: Shim) -> None:
    assert (await shim.admin.get("/search/node?q=name%253Aweb-1&start=0&rows=1000")).json["total"] == 1


async def test_search_knows_tags_and_pages(shim: Shim) -> None:
    node = shim.rig.registry.get("default", "web-2")
    assert node is not None
    await shim.rig.registry.put(replace(node, tags={"role": "web"}))
    assert (await shim.admin.get("/search/node?q=tags:role%3Dweb")).json["rows"] == [{"name": "web-2"}]
    page = (await shim.admin.get("/search/node?q=*:*&start=1&rows=1")).json
    assert page == {"rows": [{"name": "web-1"}], "start": 1, "total": 3}


@pytest.mark.parametrize(
    "query", ["q=ipaddress:10.*", "q=web-1", "q=name:[a TO b]", "q=(", "q=*:*&start=-1", "q=*:*&rows=x"]
)
async def test_search_that_is_not_supported_is_400_and_never_an_empty_answer(shim: Shim, query: str) -> None:
    answer = await shim.admin.get(f"/search/node?{quote(query, safe='=&')}")
    assert answer.status == 400
    assert answer.error
