"""The systemd units promise what the code relies on."""

from __future__ import annotations

from configparser import RawConfigParser
from pathlib import Path

import pytest

from shovey_trio.config.server import ServerSettings

UNITS = Path(__file__).parents[2] / "shovey_trio" / "system" / "systemd"
RUN_COMMANDS = ["shovey-agent-launcher.service", "shovey-agent-single.service"]


def unit(name: str) -> RawConfigParser:
    parser = RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read_string((UNITS / name).read_text("utf-8"))
    return parser


@pytest.mark.parametrize("name", RUN_COMMANDS)
def test_stopping_the_agent_leaves_its_jobs_alone_and_a_crash_brings_it_back(name: str) -> None:
    service = unit(name)["Service"]
    assert service["KillMode"] == "process"
    assert service["Restart"] == "always"
    assert service["OOMPolicy"] == "continue"


@pytest.mark.parametrize("name", RUN_COMMANDS)
def test_what_runs_commands_is_given_a_cgroup_to_divide_and_sits_in_one_beside_them(name: str) -> None:
    service = unit(name)["Service"]
    assert service["Delegate"] == "yes"
    assert service["DelegateSubgroup"]


def test_the_controller_is_given_more_time_to_stop_than_it_takes_to_drain() -> None:
    service = unit("shovey-trio.service")["Service"]
    assert float(service["TimeoutStopSec"]) > ServerSettings().server.drain_timeout


@pytest.mark.parametrize("name", [*RUN_COMMANDS, "shovey-agent.service", "shovey-trio.service"])
def test_state_is_private_and_readiness_is_told(name: str) -> None:
    service = unit(name)["Service"]
    assert (service["Type"], service["StateDirectoryMode"], service["UMask"]) == ("notify", "0700", "0077")
