"""The committed stubs are what the committed contract generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run(
        ["bash", ROOT / "tools" / "gen_proto.sh", tmp_path],
        env={"PYTHON": sys.executable, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        check=True,
        capture_output=True,
        timeout=100,
    )
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.py*")}
    kept = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / "shovey_trio" / "v1").glob("*_pb2*.py*")}
    assert set(made) == set(kept), "a file is missing, or left over from a contract that is gone"
    assert [str(path) for path in made if made[path] != kept[path]] == []
