"""The systemd units: who is caged and who is not, that the parts meet at one socket, and that systemd takes them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from shovey_agent.cli import cli as agent_cli
from shovey_agent.config import AgentSettings, load_agent_settings
from shovey_trio.config.sources import parse_overrides

UNITS = Path(__file__).parents[2] / "shovey_trio" / "system" / "systemd"
NAMES = sorted(path.name for path in UNITS.glob("*.service"))
NETWORK, LAUNCHER, SINGLE = "shovey-agent.service", "shovey-agent-launcher.service", "shovey-agent-single.service"
# Whatever is forbidden to a process is forbidden to all that it starts.
CAGES = (
    "Protect",
    "Private",
    "Restrict",
    "SystemCall",
    "Capability",
    "NoNewPrivileges",
    "MemoryDeny",
    "Device",
    "Lock",
)


def settings(name: str) -> dict[str, list[str]]:
    """Key → its values, in order: systemd has keys that may be given again."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text("utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_there_are_these_units_and_each_is_looked_at_here() -> None:
    assert set(NAMES) == {NETWORK, LAUNCHER, SINGLE, "shovey-trio.service"}


@pytest.mark.parametrize("name", [LAUNCHER, SINGLE])
def test_what_runs_commands_is_not_caged_and_jobs_outlive_it(name: str) -> None:
    assert [key for key in settings(name) if key.startswith(CAGES)] == []
    assert settings(name)["KillMode"] == ["process"]


def test_the_network_part_is_an_account_without_rights_in_a_cage() -> None:
    network = settings(NETWORK)
    expected = {
        "User": ["shovey-agent"],
        "NoNewPrivileges": ["yes"],
        "CapabilityBoundingSet": [""],
        "ProtectSystem": ["strict"],
        "ProtectHome": ["yes"],
        "PrivateTmp": ["yes"],
        "MemoryDenyWriteExecute": ["yes"],
        "RestrictAddressFamilies": ["AF_INET AF_INET6 AF_UNIX"],
        "SystemCallFilter": ["@system-service", "~@privileged @resources"],
    }
    assert {key: network.get(key) for key in expected} == expected
    assert "Delegate" not in network


def test_the_account_of_the_network_part_is_the_one_that_the_launcher_expects_and_is_made() -> None:
    user = AgentSettings().launcher.user
    assert settings(NETWORK)["User"] == [user]
    assert "User" not in settings(LAUNCHER)
    lines = (UNITS.parent / "sysusers.d" / "shovey-trio.conf").read_text("utf-8").splitlines()
    assert {line.split()[1] for line in lines if line.startswith("u ")} == {user, "shovey-trio"}


def test_both_parts_name_the_same_socket_in_a_directory_that_is_root_s() -> None:
    (run,), (launch,) = settings(NETWORK)["ExecStart"], settings(LAUNCHER)["ExecStart"]
    _, command, *words = shlex.split(run)
    assert (command, words[0]) == ("run", "--set")
    found = load_agent_settings(None, environ={}, overrides=parse_overrides(words[1:]))
    assert shlex.split(launch)[1:] == ["launcher", "--socket", str(found.launcher.socket)]
    assert Path(str(found.launcher.socket)).parent == Path("/run") / settings(LAUNCHER)["RuntimeDirectory"][0]
    assert settings(LAUNCHER)["RuntimeDirectoryMode"] == ["0755"]


def test_state_directories_are_those_of_the_settings() -> None:
    defaults = AgentSettings()
    assert Path("/var/lib") / settings(NETWORK)["StateDirectory"][0] == defaults.agent.state_dir
    assert Path("/var/lib") / settings(SINGLE)["StateDirectory"][0] == defaults.agent.state_dir
    assert Path("/var/lib") / settings(LAUNCHER)["StateDirectory"][0] == defaults.launcher.state_dir


@pytest.mark.parametrize("name", [NETWORK, LAUNCHER, SINGLE])
def test_the_command_of_a_unit_is_one_that_the_program_has(name: str) -> None:
    program, command, *words = shlex.split(settings(name)["ExecStart"][0])
    assert program == "/usr/bin/shovey-agent"
    help_ = CliRunner().invoke(agent_cli, [command, "--help"])
    assert help_.exit_code == 0
    assert all(word in help_.output for word in words if word.startswith("--"))


@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_every_line(name: str, tmp_path: Path) -> None:
    """Where there is no systemd to ask, the other tests of this file are what holds."""
    if (analyze := shutil.which("systemd-analyze")) is None:
        return
    for unit in UNITS.glob("*.service"):
        # The programs are not installed here, and that is not the question.
        (tmp_path / unit.name).write_text(re.sub("^ExecStart=.*", "ExecStart=/bin/true", unit.read_text(), flags=re.M))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [
        line
        for line in done.stderr.splitlines()
        # Since systemd 254; older ones say so and go on, as the unit says.
        if f"{name}:" in line and "DelegateSubgroup" not in line
    ]
    assert complaints == []
