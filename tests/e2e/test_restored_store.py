"""An older copy of the store is put back under a real fleet: nobody gets in again, and nothing runs twice."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import trio

from lab.limits import within
from lab.restored import copy_store, put_back, restored_once
from shovey_trio.core.errors import Exit
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import Fleet, NodeSpec, open_fleet, run_program
from shovey_trio.demo.operator import open_operator, state_of
from shovey_trio.demo.processes import ProcessFailed

pytestmark = pytest.mark.slow
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")


async def typed(fleet: Fleet, lines: list[str], directory: Path) -> None:
    """What operations.md says to type, typed; the fleet's controller is the service."""
    environ = {**os.environ, "SHOVEY_TRIO_CONFIG": str(fleet.data.configuration)}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    for line in lines:
        match line.split():
            case ["systemctl", "stop", "shovey-trio"]:
                await fleet.controller.stop()
            case ["systemctl", "start", "shovey-trio"]:
                await fleet.controller.start()
                await fleet.wait_up()
            case _:
                done = await trio.run_process(
                    ["sh", "-c", line], cwd=directory, env=environ, capture_stderr=True, check=False
                )
                assert done.returncode == 0, done.stderr.decode()


def lines_of_the_walk() -> list[str]:
    section = OPERATIONS.partition("\n### Backup and restore\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [line.partition("#")[0].strip() for line in block.splitlines() if line.partition("#")[0].strip()]


def times_held(directory: Path, node: str) -> int:
    return len((directory / f"{node}.held").read_text().splitlines())


@within(110)
async def test_older_copy_starts_only_when_it_is_meant_and_then_lets_nobody_in_and_runs_nothing_twice(
    tmp_path: Path,
) -> None:
    # Their own gates: one command ends before the copy is put back, the other after.
    gates = {node: tmp_path / node / "gate" for node in ("a", "b")}
    for gate in gates.values():
        gate.parent.mkdir(parents=True)
    specs = [
        NodeSpec(name=node, whitelist=commands(str(gate.parent)), settings={"reconnect.delay_max": "0.5s"})
        for node, gate in gates.items()
    ]
    data = "--data-dir", str(tmp_path / "fleet" / "controller")
    (tmp_path / "fleet").mkdir()
    async with open_fleet(tmp_path / "fleet", specs, serf=False) as fleet:
        async with open_operator(fleet) as operator:
            jobs = {node: await operator.start("held", node) for node in gates}
            for node, job in jobs.items():
                await operator.lines(job, node, 1)
            await run_program(
                "shovey-trio", "user", "cert", "bob", "--role", "operator", "--out", str(tmp_path / "bob"), *data
            )
            await run_program("shovey", "--config", str(tmp_path / "bob"), "node", "list")
            join = (await run_program("shovey-trio", "node", "token", "c", "-q", *data)).strip()
            copy_store(fleet.data.store, tmp_path / "copy")

            (gates["a"].parent / "go").touch()
            assert state_of((await operator.finished(jobs["a"])).runs["a"]) == "failed"
            await run_program("shovey-trio", "user", "revoke", "bob", *data)
            await run_program("shovey-agent", "enroll", join, "--state-dir", str(tmp_path / "c"))
        assert await fleet.controller.stop() == 0

        put_back(tmp_path / "copy", fleet.data.store)
        await fleet.controller.start()
        assert await fleet.controller.wait() == Exit.CONFLICT.value
        assert "start once with --restored" in fleet.controller.tail(3)

        with restored_once(fleet):
            await fleet.controller.start()
            await fleet.wait_up()
        async with open_operator(fleet) as operator:
            ended = (await operator.finished(jobs["a"])).runs["a"]
            assert (state_of(ended), ended.cause) == ("crashed", "store_restored")
            await operator.reached(jobs["b"], "b", "running")
            (gates["b"].parent / "go").touch()
            assert (await operator.finished(jobs["b"])).runs["b"].exit_code == 7
        assert [times_held(gate.parent, node) for node, gate in gates.items()] == [1, 1]
        with pytest.raises(ProcessFailed, match="revoked"):
            await run_program("shovey", "--config", str(tmp_path / "bob"), "node", "list")
        with pytest.raises(ProcessFailed, match="INVALID_ENROLLMENT_TOKEN"):
            await run_program("shovey-agent", "enroll", join, "--state-dir", str(tmp_path / "again"))
        await run_program("shovey-trio", "audit", "verify", *data)
        assert "store.restored" in await run_program("shovey-trio", "audit", "export", *data)

        # Once is enough.
        assert await fleet.controller.stop() == 0
        await fleet.controller.start()
        await fleet.wait_up()
        assert not fleet.noise()


@within(110)
async def test_backup_and_restore_as_operations_says_it(tmp_path: Path) -> None:
    backup, *rest = lines_of_the_walk()
    (tmp_path / "typed").mkdir()
    specs = [NodeSpec(name="a", whitelist=commands(str(tmp_path)), settings={"reconnect.delay_max": "0.5s"})]
    async with open_fleet(tmp_path, specs, serf=False) as fleet, open_operator(fleet) as operator:
        before = await operator.run("true", "a")
        job = await operator.start("held", "a")
        await operator.lines(job, "a", 1)
        await typed(fleet, [backup], tmp_path / "typed")
        (tmp_path / "go").touch()
        assert (await operator.finished(job)).runs["a"].exit_code == 7
        await typed(fleet, rest, tmp_path / "typed")
        ended = (await operator.finished(job)).runs["a"]
        assert (state_of(ended), ended.cause) == ("crashed", "store_restored")
        assert (await operator.finished(before.job.id)).states() == {"a": "succeeded"}
        assert (await operator.run("true", "a")).states() == {"a": "succeeded"}
        assert times_held(tmp_path, "a") == 1
        assert not fleet.noise()
