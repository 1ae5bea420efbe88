"""What the wings bring to what all kinds of nodes share. A wing is one more kind of node with the protocol it speaks.

This module, ``composition`` and the tables of commands and scenarios are all that name a wing: without its folder
nothing else would miss anything (``tools/check_wings.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from shovey_trio.identity.key_kinds import KeyKind
from shovey_trio.shovey.keys import SCHOB_KEYS
from shovey_trio.shovey.kind import KIND

KEY_KINDS: Final[Mapping[str, KeyKind[Any]]] = MappingProxyType({SCHOB_KEYS.word: SCHOB_KEYS})
#: Nodes that are registered by hand (``Node.link``), and what they are.
NODE_KINDS: Final[Mapping[str, str]] = MappingProxyType({KIND: "A node without an agent of ours: a schob."})
