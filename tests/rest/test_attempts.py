"""Who signs wrongly too often is not listened to, before the body is read; what is refused is in the audit log."""

from __future__ import annotations

import json
from typing import Any

from lab.chef_client import Answer

from .conftest import Shim, key_of, open_shim

LIMIT = 3


async def recorded(shim: Shim) -> list[dict[str, Any]]:
    await shim.audit.close()
    return [json.loads(record.body) for record in await shim.store.read_audit(after_seq=0, limit=1_000)]


async def fail(shim: Shim, user: str = "ops") -> Answer:
    return await shim.client(user, key=key_of("stranger")).get("/shovey/jobs")


async def test_signature_that_fails_too_often_is_429_and_others_at_the_address_go_on() -> None:
    async with open_shim(failed_auth_per_minute=LIMIT) as shim:
        assert [(await fail(shim)).status for _ in range(LIMIT)] == [401] * LIMIT
        answer = await fail(shim)
        assert (answer.status, answer.headers["retry-after"]) == (429, "20")
        assert (await shim.client("ops").get("/shovey/jobs")).status == 429
        assert (await shim.admin.get("/shovey/jobs")).status == 200
        records = await recorded(shim)
        assert {(r["action"], r["rule"], r["peer"], r["detail"].get("claimed")) for r in records[:2]} == {
            ("authentication.failed", "SIGNATURE_REFUSED", "127.0.0.1", "ops"),
            ("authentication.failed", "TOO_MANY_FAILURES", "127.0.0.1", "ops"),
        }


async def test_names_that_nobody_has_use_up_what_the_address_has() -> None:
    async with open_shim(failed_auth_per_minute=1) as shim:
        answers = [(await fail(shim, f"ghost-{number}")).status for number in range(12)]
        assert answers == [401] * 10 + [429] * 2


async def test_started_job_and_refused_route_are_on_record_with_route_and_caller() -> None:
    async with open_shim() as shim:
        job = await shim.settled("web-1")
        assert (await shim.client("viewer").get("/shovey/jobs")).status == 403
        by_action = {record["action"]: record for record in await recorded(shim)}
        started = by_action["job.started"]
        assert (started["method"], started["principal"], started["subject"]) == (
            "POST /shovey/jobs",
            "user/admin",
            f"job/{job}",
        )
        assert by_action["job.ended"]["detail"]["states"] == {"succeeded": 1}
        refused = by_action["call.refused"]
        assert (refused["principal"], refused["rule"]) == ("user/viewer", "policy: role viewer; PERMISSION_DENIED")
