"""What this kind of node is called in the store and on the wire, and how long it is waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: ``Node.link`` of a schob and ``Run.route`` of its runs; the command line and the configuration say it, too.
KIND: Final = "legacy"
#: The action of a record of the audit log; published records keep their names.
KEY_RESET: Final = "legacy_key.reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchobTiming:
    """How long old nodes are waited for, in seconds, where it is not as for all nodes.

    Attributes:
        per_target: how much longer per target an order may wait for its query: about one a second goes out, in the
            worst case with one name in it.
        cancel: how long, beside the kill grace, a cancelled node is waited for.
        output: how long after its end was told a run's last output is waited for.
        reorder: how long a piece of output waits for the one before it.
        fresh: how long a node counts as up after it was last heard.
        check: how often that is looked at.
    """

    per_target: float = 1.0
    cancel: float = 10.0
    output: float = 5.0
    reorder: float = 1.0
    fresh: float = 600.0
    check: float = 60.0
