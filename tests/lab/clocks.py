"""The wall clocks of a fleet's processes, each to be set by itself (``set_clock/sitecustomize.py``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HOUR: Final = 3600.0
DAY: Final = 86_400.0
#: By how much clocks are set: beyond every tolerance, beyond certificates' backdating, beyond retention.
STEPS: Final = (HOUR, -HOUR, DAY, -DAY, 31 * DAY, -31 * DAY)
#: The one of the controller; agents have the names of their nodes.
CONTROLLER: Final = "controller"

_HOOK = Path(__file__).parent / "set_clock"


class Clocks:
    """Clocks by the name of their process, in files of one directory; all right until they are set."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()

    def environment(self, name: str) -> Mapping[str, str]:
        """What the environment of a process needs so that its clock can be set."""
        path = os.pathsep.join(filter(None, [str(_HOOK), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": path, "SHOVEY_LAB_CLOCK": str(self._directory / name)}

    def set(self, name: str, ahead: float) -> None:
        """Sets a process's clock so many seconds ahead of the right time; at once, and for its next start too."""
        new = self._directory / f"{name}.new"
        new.write_text(repr(ahead), "ascii")
        new.replace(self._directory / name)

    def set_right(self) -> None:
        """Sets every clock right."""
        for file in self._directory.iterdir():
            self.set(file.name, 0.0)
