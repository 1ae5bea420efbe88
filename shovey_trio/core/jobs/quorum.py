"""How many nodes must be up before a job starts.

Forms: a count (``"3"``) or a percentage with an optional fraction (``"75%"``, ``"33.3%"``). A percentage is rounded
up: 75 % of 3 nodes is 3.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from shovey_trio.core.errors import InvalidQuorum

_FORM = re.compile(r"(?P<number>\d{1,9}(?:\.\d{1,6})?)(?P<percent>%?)", re.ASCII)


def required_nodes(quorum: str, total: int) -> int:
    """The number of nodes that must be up, between 0 and ``total``.

    Args:
        quorum: as the operator wrote it.
        total: number of targeted nodes.

    Raises:
        InvalidQuorum: not a number or percentage, above 100 %, a fraction of a node, or more nodes than targeted.
    """
    match = _FORM.fullmatch(quorum.strip())
    if match is None:
        raise InvalidQuorum(
            f"quorum {quorum!r} is neither a count such as 3 nor a percentage such as 75%", quorum=quorum
        )
    number = Decimal(match["number"])
    if match["percent"]:
        if number > 100:
            raise InvalidQuorum(f"quorum {quorum!r} is more than 100%", quorum=quorum)
        return math.ceil(number * total / 100)
    if number != int(number):
        raise InvalidQuorum(f"quorum {quorum!r} is a fraction of a node", quorum=quorum)
    if number > total:
        raise InvalidQuorum(
            f"quorum {quorum} can never be met: the job targets {total} node{'s' if total != 1 else ''}",
            quorum=quorum,
            targets=str(total),
        )
    return int(number)
