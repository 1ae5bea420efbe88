"""All targets, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fuzz import files, records, requests, serf, streams, tokens, trust
from fuzz.target import Target

TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        target.name: target
        for module in (serf, trust, streams, requests, tokens, files, records)
        for target in module.TARGETS
    }
)
