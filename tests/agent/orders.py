"""Start orders for the tests' node, each a run of its own."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from shovey_trio.core.trust.orders import Order, OrderKind

EPOCH = 1000


def make_order(**changes: Any) -> Order:
    now = time.time()
    order = Order(
        organization="org",
        node="n",
        agent_instance="instance",
        job_id=str(uuid.uuid4()),
        run_id=str(uuid.uuid4()),
        kind=OrderKind.START,
        command="true",
        run_timeout=30.0,
        kill_grace=1.0,
        issued_at=now,
        expires_at=now + 60,
        nonce=uuid.uuid4().bytes,
        epoch=EPOCH,
    )
    return replace(order, **changes)
