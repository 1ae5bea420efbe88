"""Writes the generated parts of docs/configuration.md: the table of settings and the list of commands.

    python tools/gen_config_docs.py [--check]

With ``--check`` nothing is written; the exit code is 1 when the file is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from shovey_agent.config import ENVIRONMENT_PREFIX as AGENT_PREFIX
from shovey_agent.config import AgentSettings
from shovey_trio.cli.controller.main import cli
from shovey_trio.config.operator import ENVIRONMENT_PREFIX as CLIENT_PREFIX
from shovey_trio.config.operator import ClientSettings
from shovey_trio.config.reference import describe_settings
from shovey_trio.config.server import ENVIRONMENT_PREFIX as SERVER_PREFIX
from shovey_trio.config.server import ServerSettings
from shovey_trio.config.sources import variable_name

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"
_MODELS = (
    ("shovey-trio", ServerSettings, SERVER_PREFIX),
    ("shovey-agent", AgentSettings, AGENT_PREFIX),
    ("shovey", ClientSettings, CLIENT_PREFIX),
)


def settings_table() -> str:
    """Every setting of every program."""
    lines = ["| program | setting | default | meaning | variable |", "|---|---|---|---|---|"]
    for program, model, prefix in _MODELS:
        lines += [
            f"| `{program}` | `{setting.key}` | `{setting.default}` | {setting.meaning} "
            f"| `{variable_name(prefix, setting.path)}` |"
            for setting in describe_settings(model)
        ]
    return "\n".join(lines)


def commands_table() -> str:
    """Every command of ``shovey-trio`` with its options."""
    lines = ["| command | what | options |", "|---|---|---|"]
    for path, command in walk(cli, ("shovey-trio",)):
        options = ", ".join(
            f"`{'/'.join(parameter.opts)}`" for parameter in command.params if isinstance(parameter, click.Option)
        )
        words = [*path, *(p.human_readable_name for p in command.params if isinstance(p, click.Argument))]
        lines.append(f"| `{' '.join(words)}` | {command.get_short_help_str(200)} | {options} |")
    return "\n".join(lines)


def walk(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group that is not a group itself."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name), command


def regenerate(text: str) -> str:
    """The document with its generated parts replaced."""
    for name, part in (("settings", settings_table()), ("commands", commands_table())):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{part}\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    """Entry point."""
    old = DOCUMENT.read_text()
    new = regenerate(old)
    if "--check" in arguments:
        return int(old != new)
    DOCUMENT.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
