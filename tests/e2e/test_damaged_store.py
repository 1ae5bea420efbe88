"""A row that is damaged under a running controller is refused by name; everything and everybody else goes on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lab.limits import within
from shovey_trio.core.errors import Code
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import NodeSpec, open_fleet, run_program
from shovey_trio.demo.operator import open_operator
from shovey_trio.demo.processes import ProcessFailed
from shovey_trio.rpc.bridge import RpcError

pytestmark = pytest.mark.slow


@within(110)
async def test_damaged_row_is_data_loss_by_name_and_everything_else_is_served(tmp_path: Path) -> None:
    specs = [NodeSpec(name="a", whitelist=commands(str(tmp_path)))]
    async with open_fleet(tmp_path, specs, serf=False) as fleet, open_operator(fleet) as operator:
        damaged, whole = [(await operator.run("hello", "a")).job.id for _ in range(2)]
        with closing(sqlite3.connect(fleet.data.store)) as connection, connection:
            of_job = "(SELECT job_pk FROM jobs WHERE job_id = ?)"
            connection.execute(f"UPDATE runs SET exit_code = 1 WHERE job_pk = {of_job}", [damaged])
            connection.execute(f"UPDATE output SET data = X'00' WHERE job_pk = {of_job}", [damaged])
        for read in (operator.client.get_run(damaged, "a"), operator.output(damaged, "a")):
            with pytest.raises(RpcError) as refused:
                await read
            assert (refused.value.code, refused.value.reason) == (Code.DATA_LOSS, "ROW_DAMAGED")
            assert "is not as it was written" in refused.value.message
        shovey = ("shovey", "--config", str(fleet.data.admin))
        with pytest.raises(ProcessFailed, match="ROW_DAMAGED"):
            await run_program(*shovey, "job", "status", damaged)
        assert await operator.output(whole, "a") == b"to stdout\n"
        assert (await operator.run("true", "a")).states() == {"a": "succeeded"}
        assert {job.id async for job in operator.client.list_jobs()} >= {damaged, whole}
        data = "--data-dir", str(fleet.data.root)
        with pytest.raises(ProcessFailed) as told:
            await run_program("shovey-trio", "audit", "verify", "--runs", *data)
        assert "is not as it was written" in str(told.value)
        assert not fleet.noise()
