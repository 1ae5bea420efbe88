"""What README and docs tell to type exists, and what they link to is there."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from shovey_agent.cli import cli as agent
from shovey_trio.cli.controller.main import cli as daemon
from shovey_trio.cli.operator.main import cli as operator

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tests" / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
EXAMPLES = [ROOT / "examples" / "python", ROOT / "examples" / "nodejs"]
PROGRAMS = {"shovey": operator, "shovey-trio": daemon, "shovey-agent": agent}
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:shovey|shovey-trio|shovey-agent) [a-z][^`]*|(?:tools|bench)/[\w./]+[^`]*)`")
LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def commands(text: str) -> Iterator[list[str]]:
    """Every command in shell blocks and inline code, split into words; comments and environment prefixes removed."""
    lines = [line for block in SHELL.findall(text) for line in block.splitlines()] + INLINE.findall(text)
    for line in lines:
        words = shlex.split(line.replace("…", "..."), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            yield words


def check_click(root: click.Command, words: list[str]) -> None:
    """Fails unless the words name a command, with options it has."""
    command, known = root, {option for parameter in root.params for option in parameter.opts}
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-") and word not in {"...", "&"}:
            child = command.get_command(click.Context(command), word)
            assert child is not None, f"there is no command {word}"
            command, known = child, {option for parameter in child.params for option in parameter.opts}
        elif word.startswith("-") and word not in {"-", "--help", "-h", "--version"}:
            assert word.partition("=")[0] in known, f"{command.name} has no option {word}"


@by_page
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    for words in commands(page.read_text("utf-8")):
        program = words[0].rpartition("/bin/")[2]
        if program in PROGRAMS:
            check_click(PROGRAMS[program], words[1:])
        elif program.startswith(("tools/", "bench/")):
            script = ROOT / program
            assert script.is_file(), f"{program} is not there"
            assert script.suffix != ".sh" or os.access(script, os.X_OK), f"{program} cannot be executed"
        elif program in {"bash", "python", "node"} and words[1:] and not words[1].startswith("-"):
            found = [directory for directory in (ROOT, *EXAMPLES) if (directory / words[1]).is_file()]
            assert found, f"{words[1]} is not there"


@by_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        name, _, anchor = target.partition("#")
        file = page if not name else (page.parent / name).resolve()
        assert file.exists(), target
        if anchor:
            text = file.read_text("utf-8")
            assert anchor in {anchor_of(heading) for heading in HEADING.findall(text)} or f"({anchor})=" in text, target


def anchor_of(heading: str) -> str:
    """The anchor that GitHub and MyST give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_begins_with_the_two_commands() -> None:
    first, *_ = SHELL.findall((ROOT / "README.md").read_text("utf-8"))
    assert [line.split()[0] for line in first.splitlines()] == ["tools/demo.sh", "tools/test.sh"]


def test_the_check_finds_a_wrong_command_and_a_wrong_option() -> None:
    with pytest.raises(AssertionError, match="no command strat"):
        check_click(operator, ["job", "strat"])
    with pytest.raises(AssertionError, match="no option --every"):
        check_click(operator, ["job", "start", "uptime", "--every"])
