"""Who this agent is: an id that is made with the state directory and lost with it.

Runs are pinned to it. An agent that lost its nonces and its spool must not be taken for the one that had them.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import ClassVar

from shovey_agent.spool_files import sync_directory, write_file

_FILE = "instance"
_ID = re.compile(r"[0-9a-f]{32}")


class InstanceDamaged(Exception):
    """The file holds no id, and a new one would claim the old one's nonces. Remove the state directory."""

    reason: ClassVar[str] = "INSTANCE_DAMAGED"


def load_or_create_instance(state_dir: Path) -> str:
    """Returns the agent's instance id, 32 hexadecimal digits, made and durable if there was none. Blocks.

    Raises:
        InstanceDamaged: there is a file, but no id in it.
        OSError: it can be neither read nor made.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / _FILE
    if not path.exists():
        temporary = state_dir / f".{_FILE}.{os.getpid()}"
        write_file(str(temporary), secrets.token_hex(16).encode("ascii") + b"\n", durable=True)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was first: its id stands
        finally:
            temporary.unlink()
        sync_directory(str(state_dir))
    instance = path.read_text("ascii", errors="replace").strip()
    if not _ID.fullmatch(instance):
        raise InstanceDamaged(str(path))
    return instance
