"""Whatever a person types at the three programs, what goes wrong is said in a line: no trace, no errno."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
import trio

from lab.typed import CRASHED, MAINS, PROGRAMS, commands
from shovey_trio.cli.controller.main import run as run_controller
from shovey_trio.cli.text.failures import failure_of
from shovey_trio.core.errors import Exit

JOB = "01a20202-d8f3-7000-8000-000000000001"
pytestmark = pytest.mark.slow

# What is given for an argument that has to be there and is not what the test is about.
FITTING = {"name": "web-1", "role": "operator", "command": "hello", "nodes": "web-1", "job_id": JOB, "legacy": None}
# They make processes of their own, and read no file.
LONG = {"demo", "bench"}


def line(words: list[str], command: click.Command, given: dict[str, str], *root: str) -> list[str]:
    """A command line with what is required and what is ``given``."""
    built = [words[0], *root, *words[1:]]
    for parameter in command.params:
        name = parameter.name or ""
        if name not in given and not parameter.required:
            continue
        value = given.get(name, FITTING.get(name, "x"))
        flag = [parameter.opts[0]] if isinstance(parameter, click.Option) else []
        built += [*flag, *([] if value is None else [value])]
    return built


def typed(lines: Sequence[Sequence[str]], directory: Path) -> list[tuple[int, str, str]]:
    """How each of ``lines`` ends; they may not read what their files' modes forbid, root or not."""
    capabilities = "-dac_override,-dac_read_search"
    rights = ["setpriv", f"--inh-caps={capabilities}", f"--bounding-set={capabilities}"] if os.geteuid() == 0 else []
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SHOVEY")}
    done = subprocess.run(
        [*rights, sys.executable, "-m", "lab.typed"],
        input=json.dumps(lines).encode(),
        # Nobody's own configuration, and no default place of this machine.
        env={**environ, "HOME": str(directory / "home"), "XDG_CONFIG_HOME": str(directory / "home")},
        capture_output=True,
        timeout=110,
        check=True,
        cwd=directory,
    )
    return [tuple(ended) for ended in json.loads(done.stdout)]


def faults(lines: Sequence[list[str]], endings: Sequence[tuple[int, str, str]]) -> list[str]:
    """What no ending may be."""
    found = []
    for words, (code, out, err) in zip(lines, endings, strict=True):
        said = out + err
        wrong = [mark for mark in ("Traceback", "[Errno", "has a bug", "(INTERNAL)") if mark in said]
        if code < 0 or code == CRASHED:
            wrong.append(f"exit {code}")
        # These two list what they found.
        if (
            code
            and words[1] not in ("doctor", "whitelist")
            and not any(text.startswith(("error: ", "Usage: ")) for text in err.splitlines())
        ):
            wrong.append("no line that says what is wrong")
        if wrong:
            found.append(f"{' '.join(words)}\n    {', '.join(wrong)}\n    {said.strip()[-600:]}")
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("typed")
    data = root / "data"
    assert run_controller(["init", "--data-dir", str(data)]) == 0
    readonly = root / "readonly"  # or the first command that writes a file would make it a good one
    (readonly / "directory").mkdir(parents=True)
    (readonly / "garbage").write_bytes(bytes(range(256)) * 40)
    readonly.chmod(0o555)
    locked = root / "locked"
    locked.mkdir()
    (locked / "file").write_text("secret")
    (root / "sealed").write_text("secret")
    (root / "sealed").chmod(0)
    locked.chmod(0)
    return {
        "root": root,
        "data": data,
        "absent": root / "absent" / "file",
        "garbage": readonly / "garbage",
        "directory": readonly / "directory",
        "unreadable": root / "sealed",
        "behind a locked directory": locked / "file",
    }


BAD = ["absent", "garbage", "directory", "unreadable", "behind a locked directory"]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_one_line_wherever_one_can_be_named(places: dict[str, Path], bad: str) -> None:
    lines = [["shovey", option, str(places[bad]), "version"] for option in ("--ca", "--cert", "--key")]
    for words, command in typeable():
        names = {parameter.name or "": parameter.type for parameter in command.params}
        if words[0] == "shovey":
            lines.append(line(words, command, {}, "--config", str(places[bad])))
        for name, kind in names.items():
            sources = (
                {"data_dir": str(places["data"])} if "config" in names and name not in ("config", "data_dir") else {}
            )
            if isinstance(kind, click.Path | click.File) and (words[1], name) != ("init", "data_dir"):
                lines.append(line(words, command, {**sources, name: str(places[bad])}))
    assert len(lines) > 100
    assert not (wrong := faults(lines, typed(lines, places["root"]))), "\n".join(wrong)


def test_values_of_the_wrong_type_are_one_line_at_every_command(places: dict[str, Path]) -> None:
    lines = []
    for words, command in typeable():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not (
                parameter.is_flag or isinstance(parameter.type, click.Path)
            ):
                sources = {"data_dir": str(places["data"])} if words[0] == "shovey-trio" else {}
                lines.append(line(words, command, {**sources, parameter.name or "": "-1 \u2603"}))
    for setting in ("server.control_listen=1:2:3", "jobs.kill_grace=soon", "x=y", "server=1", "=", "log.level=7"):
        lines += [["shovey-trio", "serve", "--data-dir", str(places["data"]), "--set", setting]]
        lines += [["shovey-agent", "run", "--set", setting]]
    assert len(lines) > 80
    assert not (wrong := faults(lines, typed(lines, places["root"]))), "\n".join(wrong)


def typeable() -> list[tuple[list[str], click.Command]]:
    return [(words, command) for words, command in commands() if words[1] not in LONG]


@pytest.mark.parametrize("setting", ["server.control_listen", "server.enroll_listen", "rest.listen"])
def test_a_taken_port_is_one_line_that_names_it(places: dict[str, Path], setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = {
            "server.control_listen": "127.0.0.1:0",
            "server.enroll_listen": "127.0.0.1:0",
            "rest.listen": "127.0.0.1:0",
        }
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        chosen = [f"--set={key}={value}" for key, value in {**free, setting: address}.items()]
        words = ["shovey-trio", "serve", "--data-dir", str(places["data"]), "--set=rest.enabled=true", *chosen]
        [(code, _, said)] = typed([words], places["root"])
    assert said.startswith(f"error: cannot listen on {address} ({setting}): another program has that port")
    assert (code, len(said.splitlines())) == (Exit.BUSY.value, 1)


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_a_bug_is_one_line_that_says_how_to_see_more(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def broken() -> None:
        raise BaseExceptionGroup("tasks", [RuntimeError("the\nmatter")])

    monkeypatch.setattr(sys.modules[MAINS[name].__module__], "cli", broken)
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as left:
        MAINS[name]()
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {name} has a bug: RuntimeError: the matter; please report it")
    assert said.endswith("SHOVEY_TRACEBACK=1 before it (INTERNAL)")
    assert left.value.code == Exit.INTERNAL.value
    monkeypatch.setenv("SHOVEY_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        MAINS[name]()
    assert "in broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            "/root/x: Permission denied; run it as the owner",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device (ENOSPC)"),
        (FileExistsError("out exists"), "out exists (OS_ERROR)"),
        (trio.TooSlowError(), "no answer in time (TIMEOUT)"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = failure_of(error)
    assert failed is not None
    failed.show()
    assert capsys.readouterr().err.startswith(f"error: {line}")
