"""Seeds from the recorded exchanges in ``tests/golden``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_GOLDEN: Final = Path(__file__).parent.parent / "tests" / "golden"


def records(name: str) -> Iterator[dict[str, Any]]:
    """The lines of a ``.jsonl`` recording."""
    for line in (_GOLDEN / name).read_text("utf-8").splitlines():
        yield json.loads(line)


def document(name: str) -> Any:
    """A ``.json`` file of vectors."""
    return json.loads((_GOLDEN / name).read_text("utf-8"))
