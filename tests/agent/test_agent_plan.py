"""What ``shovey-agent run`` becomes: it has the settings that were read, and not what read them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from shovey_agent.config import load_agent_settings
from shovey_agent.program.agent_plan import AgentPlan, Reconnect, plan_agent
from shovey_trio.core.jobs.model import LinkMode

_SETTINGS: dict[str, object] = {
    "agent.state_dir": "/state",
    "agent.whitelist": "/whitelist.json",
    "agent.server": "controller:7000",
    "agent.link": "on-demand",
    "agent.tags": {"dc": "b"},
    "launcher.socket": "/run/launcher.sock",
    "serf.address": "127.0.0.1:7374",
    "serf.auth_key_file": "/serf.key",
    "runs.max_concurrent": 3,
    "runs.max_processes": 500,
    "runs.output_cap": "1MiB",
    "runs.spool_cap": "2MiB",
    "reconnect.delay_min": "1s",
    "reconnect.delay_max": "2s",
    "reconnect.pull_every": "3s",
    "reconnect.linger": "4s",
    "log.level": "debug",
    "log.format": "json",
}


def test_every_setting_arrives_as_it_was_read() -> None:
    plan = plan_agent(load_agent_settings(None, environ={}, overrides=_SETTINGS.items()))
    assert AgentPlan.from_document(json.loads(json.dumps(asdict(plan)))) == plan
    assert plan == AgentPlan(
        state_dir="/state",
        whitelist="/whitelist.json",
        server="controller:7000",
        link=LinkMode.ON_DEMAND,
        tags={"dc": "b"},
        launcher="/run/launcher.sock",
        serf="127.0.0.1:7374",
        serf_key_file="/serf.key",
        max_runs=3,
        max_processes=500,
        output_cap=2**20,
        spool_cap=2**21,
        reconnect=Reconnect(delay_min=1.0, delay_max=2.0, pull_every=3.0, linger=4.0),
        log_level="debug",
        log_format="json",
    )


def test_without_serf_and_launcher_their_places_are_empty() -> None:
    plan = plan_agent(load_agent_settings(None, environ={}, overrides=[("serf.enabled", False)]))
    assert (plan.serf, plan.serf_key_file, plan.launcher) == ("", "", "")
    assert plan.reconnect == Reconnect()


@pytest.mark.parametrize("modules", ["shovey_agent.agent, shovey_agent.desk.local", "shovey_agent.desk.launcher"])
def test_what_reads_settings_and_what_other_programs_need_is_not_loaded(modules: str) -> None:
    unwanted = {"click", "pydantic", "yaml", "httpx2", "h11", "sqlalchemy", "shovey_agent.config"}
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert unwanted.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("module", ["shovey_agent.agent", "shovey_agent.desk.launcher"])
def test_structlog_is_loaded_without_rich(module: str) -> None:
    # An empty plan ends it as soon as all is loaded.
    command = [sys.executable, "-P", "-X", "importtime", "-m", module, "{}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "structlog.dev" in loaded
    # ``rich`` itself is in the list because somebody has asked for it.
    assert not [name for name in loaded if name.startswith("rich.")]


def test_an_agent_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    plan = plan_agent(load_agent_settings(None, environ={}, overrides=[("agent.state_dir", str(tmp_path))]))
    command = [sys.executable, "-P", "-m", "shovey_agent.agent", json.dumps(asdict(plan))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "(NOT_ENROLLED)" in done.stderr
