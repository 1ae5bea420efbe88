"""docs/cli.md says what the commands say."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from shovey_trio.cli.operator.main import cli
from shovey_trio.cli.text.output_formats import Format
from shovey_trio.core.errors import Exit
from shovey_trio.core.jobs.model import ProofKind

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_cli_docs", ROOT / "tools" / "gen_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the first table below ``heading``, without its first two lines."""
    section = DOCUMENT.partition(f"\n{heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines is not None, heading
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]


def test_the_reference_is_what_the_commands_say_now(generator: ModuleType) -> None:
    assert generator.with_reference(DOCUMENT) == DOCUMENT, "run tools/gen_cli_docs.py"


@pytest.mark.parametrize(("path", "command"), list(commands(cli, ("shovey",))))
def test_every_command_and_option_is_there_and_explained(path: str, command: click.Command) -> None:
    section = DOCUMENT.partition(f"`{path}`\n\n```text\n")[2].partition("\n```\n")[0]
    assert command.help
    assert command.help.split(".")[0].split()[0] in section
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.name} has no help"
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", section), f"{path} {name}"


def test_the_summaries_of_groups_are_of_existing_commands() -> None:
    for path, command in commands(cli, ("shovey",)):
        if isinstance(command, click.Group):
            assert "Commands:" in DOCUMENT.partition(f"`{path}`\n")[2]


def test_every_exit_code_is_in_the_table_and_no_other() -> None:
    documented = {(row[0], row[1]) for row in table_rows("## Exit codes")}
    assert documented == {(str(code.value), code.name) for code in Exit}


def test_every_format_is_in_the_table_and_no_other() -> None:
    assert [row[0] for row in table_rows("## Formats")] == [choice.value for choice in Format]


def test_every_kind_of_proof_is_in_the_table_and_no_other() -> None:
    assert [row[0] for row in table_rows("### Cancelling")] == [kind.value for kind in ProofKind]
