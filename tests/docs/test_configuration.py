"""docs/configuration.md tells every setting, default, command and option: compared with the programs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from shovey_agent.config import AgentSettings
from shovey_trio.cli.controller.main import cli
from shovey_trio.config.operator import ClientSettings
from shovey_trio.config.reference import describe_settings
from shovey_trio.config.server import ServerSettings
from shovey_trio.config.sources import setting_names

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| `([^`]*)` \|", re.MULTILINE)


@pytest.mark.parametrize(
    ("program", "model"), [("shovey-trio", ServerSettings), ("shovey-agent", AgentSettings), ("shovey", ClientSettings)]
)
def test_the_table_has_exactly_the_settings_and_defaults_of_the_program(program: str, model: type[BaseModel]) -> None:
    told = {key: default for name, key, default in ROW.findall(DOCUMENT) if name == program}
    assert told == {setting.key: setting.default for setting in describe_settings(model)}
    assert set(told) == {".".join(path) for path in setting_names(model)}


def commands(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    found = []
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += commands(command, f"{path} {name}")
        else:
            found.append((f"{path} {name}", command))
    return found


def test_every_command_and_option_is_told_in_its_row() -> None:
    for name, command in commands(cli, "shovey-trio"):
        rows = [line for line in DOCUMENT.splitlines() if re.match(rf"\| `{re.escape(name)}[ `]", line)]
        assert len(rows) == 1, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in rows[0], (name, parameter.opts)


def test_every_option_says_what_it_is_for() -> None:
    for name, command in commands(cli, "shovey-trio"):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in ("help", "output"):
                assert parameter.help, (name, parameter.opts)


def test_the_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/gen_config_docs.py", "--check"], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b""), "run python tools/gen_config_docs.py"
