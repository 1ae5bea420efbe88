"""The README's "A real installation", pasted line by line on two machines whose Python takes no packages (PEP 668)."""

from __future__ import annotations

import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from lab.machines import Machine, open_machines
from tests.docs.test_readme import ROOT, SHELL

# Two installations with all dependencies, built and unpacked.
HARD_LIMIT = 280.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(HARD_LIMIT + 100)]
SECTION = "## A real installation"
HOST = "controller.example.com"
# Debian's; a Python that a developer has beside it takes packages, and is not what a first day begins with.
SYSTEM_PYTHON = "/usr/bin/python3"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def blocks() -> list[list[str]]:
    """The lines for the controller's host, for a node, and for whoever works with them."""
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = SHELL.findall(text[text.index(SECTION) :].partition("\n## ")[0])
    return [[line.partition(" #")[0].strip() for line in part.splitlines()] for part in block.split("\n\n")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would fetch, for machines that reach nobody but each other."""
    directory = tmp_path_factory.mktemp("wheels")
    builder = directory / "builder"
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", str(builder)], check=True, timeout=60)
    command = [str(builder / "bin" / "pip"), "wheel", "--quiet", "--wheel-dir", str(directory)]
    subprocess.run([*command, f"{ROOT}[server]", "hatchling"], check=True, timeout=200)
    for own in directory.glob("shovey_trio-*.whl"):
        own.unlink()
    return directory


async def test_the_lines_of_the_readme_lead_from_nothing_to_a_job(tmp_path: Path, wheels: Path) -> None:
    # Before the first package there is an environment to put it into, on either machine.
    for lines in blocks()[:2]:
        assert [line.split()[:3] for line in lines[:2]] == [["python3", "-m", "venv"], ["export", lines[1][7:]]]
    with trio.fail_after(HARD_LIMIT):
        await _paste(tmp_path, wheels)


async def _paste(directory: Path, wheels: Path) -> None:
    # Where packages come from, and nothing of the environment that the tests run in.
    environ = {
        "PATH": SYSTEM_PATH,
        "PYTHONPATH": "",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }
    async with AsyncExitStack() as stack:
        controller, node = await stack.enter_async_context(open_machines(directory, HOST, "web-1"))
        controller.place = node.place = ROOT
        said, printed = "", ""
        for machine, lines in zip((controller, node, controller), blocks(), strict=True):
            for line in lines:
                if line.endswith("&"):
                    process = machine.background(line.removesuffix("&"), environ)
                    stack.push_async_callback(process.stop)
                    await process.start()
                else:
                    await until_there(controller, line, environ)
                    said = await machine.run(line.replace("JOIN-STRING", printed), environ)
                    # The last word of the command that makes a token; the line to be typed has it at its end.
                    printed = said.strip().rpartition(" ")[2] if "token" in line else printed
        # What `uptime` says, labelled.
        assert said.startswith("web-1 | ")
        assert "load average" in said
        # Nothing went past the environment.
        assert (
            await node.run(f"cd /; {SYSTEM_PYTHON} -c 'import shovey_trio' || echo not there", environ) == "not there\n"
        )


async def until_there(controller: Machine, line: str, environ: dict[str, str]) -> None:
    """Waits for what the reader would wait for: a controller that takes nodes, a node that takes jobs."""
    awaited = {
        "shovey-agent enroll": f"(exec 3<>/dev/tcp/{HOST}/7444) 2>&1",
        "shovey job": "shovey node list | grep ' up '",
    }
    question = next((asked for begin, asked in awaited.items() if line.startswith(begin)), "true")
    while "no" in (await controller.run(f"{question} >/dev/null && echo yes || echo no", environ)).split():
        await trio.sleep(0.2)
