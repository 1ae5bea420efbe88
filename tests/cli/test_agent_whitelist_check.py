"""``shovey-agent whitelist check`` on the node whose commands they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shovey_agent.cli import cli


def check(directory: Path, **entry: Any) -> Result:
    file = directory / "whitelist.json"
    file.write_text(json.dumps({"whitelist": {"x": entry}}))
    return CliRunner().invoke(cli, ["whitelist", "check", str(file)])


@pytest.mark.parametrize(
    ("entry", "is_there"),
    [
        ({"argv": ["/bin/sh"]}, True),
        ({"argv": ["sh"]}, True),
        ({"argv": ["./sh"], "cwd": "/bin"}, True),
        ({"argv": ["/nonexistent/program"]}, False),
        ({"argv": ["no-such-program"]}, False),
        ({"argv": ["sh"], "env": {"PATH": "/nonexistent"}}, False),
        ({"argv": ["/etc/passwd"]}, False),
    ],
)
def test_a_program_that_is_not_there_is_warned_of(tmp_path: Path, entry: dict[str, Any], is_there: bool) -> None:
    done = check(tmp_path, **entry)
    assert (done.exit_code, "there is no program" in done.stderr) == (0, not is_there)
