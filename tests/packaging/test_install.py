"""The wheel, installed into an empty environment: what is in it, and what the base install can do without extras."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP_DEADLINE = 110

pytestmark = pytest.mark.slow


def run(*command: str, deadline: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=deadline, check=False, cwd="/"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)),
        deadline=PIP_DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` directory of an environment with the wheel and its base dependencies."""
    environment = tmp_path_factory.mktemp("base")
    assert run(sys.executable, "-m", "venv", "--without-pip", str(environment)).returncode == 0
    python = str(environment / "bin" / "python")
    done = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", str(wheel)), deadline=PIP_DEADLINE
    )
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def test_the_wheel_holds_both_packages_the_contract_and_the_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"shovey_trio", "shovey_agent"}
    # Beside the stubs, so that the installed packages' directory is an include path for protoc.
    contract = {path.relative_to(ROOT / "proto").as_posix() for path in (ROOT / "proto").rglob("*.proto")}
    assert contract
    assert contract <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_units_accounts_and_a_whitelist_are_in_the_wheel(base: Path, tmp_path: Path) -> None:
    done = run(str(base / "shovey-trio"), "install-units", "--root", str(tmp_path))
    assert (done.returncode, done.stdout.count("is written")) == (0, 6)
    unit = tmp_path / "etc" / "systemd" / "system" / "shovey-agent.service"
    assert f"ExecStart={base}/shovey-agent run" in unit.read_text()


def test_no_fakes_rigs_or_chaos_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        words = {name: set(re.split(r"[/._]", name)) for name in archive.namelist()}
    laboratory = {"fake", "fakes", "rig", "chaos", "faults", "double", "emulator", "lab", "testing", "tests"}
    assert [name for name, found in words.items() if found & laboratory] == []


@pytest.mark.parametrize("program", ["shovey", "shovey-agent", "shovey-trio"])
def test_the_base_install_answers_help_and_version(base: Path, program: str) -> None:
    shown = run(str(base / program), "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"Usage: {program}" in shown.stdout
    version = run(str(base / program), "--version")
    assert version.returncode == 0
    assert version.stdout.startswith(program)


def test_the_base_install_has_no_server_parts(base: Path) -> None:
    done = run(str(base / "python"), "-c", "import sqlalchemy")
    assert "ModuleNotFoundError" in done.stderr


def test_the_base_install_imports_all_of_the_agent_and_the_client(base: Path) -> None:
    program = (
        "import importlib, json, pkgutil, shovey_agent, shovey_trio.cli.operator.main as operator;"
        # The zygote's module is a program of its own; importing it does nothing either.
        "names = [m.name for m in pkgutil.walk_packages(shovey_agent.__path__, 'shovey_agent.')];"
        "names += [at.partition(':')[0] for table in (operator._JOB, operator._NODE, operator._ROOT)"
        " for at, _ in table.values()];"
        "names += ['shovey_trio.cli.operator.' + name for name in ('session', 'attach', 'live')];"
        "[importlib.import_module(name) for name in names];"
        "print(json.dumps(names))"
    )
    done = run(str(base / "python"), "-c", program)
    assert done.returncode == 0, done.stderr
    assert {"shovey_agent.agent", "shovey_agent.supervisor.supervise", "shovey_trio.cli.operator.job_start"} <= set(
        json.loads(done.stdout)
    )


def test_the_base_install_says_what_to_install_for_a_controller(base: Path, tmp_path: Path) -> None:
    done = run(str(base / "shovey-trio"), "init", "--data-dir", str(tmp_path / "data"))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "shovey-trio[server]" in done.stderr


def test_an_agent_of_the_base_install_says_that_it_is_not_enrolled(base: Path, tmp_path: Path) -> None:
    done = run(str(base / "shovey-agent"), "run", "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert "NOT_ENROLLED" in done.stderr
