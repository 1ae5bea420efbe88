"""What becomes of a value that a peer sent: stored, read back, and shown to clients of both protocols.

A value that is taken and cannot be shown afterwards is worse than one that is refused: it breaks the answers to
everybody who asks for it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from shovey_trio.core.jobs.model import LinkMode, Node, OutputChunk, Run
from shovey_trio.http.messages import json_bytes
from shovey_trio.rpc.convert import chunk_message, node_message, run_message
from shovey_trio.shovey.protocol.views import node_view, run_view
from shovey_trio.store.sql.rows import CHUNK, NODE, RUN

# What a run may keep of a peer's words. A run is held in memory while it lives, and in the store after that.
_MAX_WORDS = 16 * 1024


def shown_run(run: Run) -> Run:
    """The run as it comes back from the store, once it was shown."""
    changes = RUN.changes(run)
    _check_columns(changes)
    fixed = [run.id, run.job_id, run.organization, run.node, run.created_at, run.nonce]
    back = RUN.from_event(fixed, RUN.event_body(changes))
    assert back == run
    message = run_message(back)
    message.SerializeToString()
    for name in ("accepted_at", "started_at", "finished_at"):
        getattr(message, name).ToDatetime()
    json_bytes(run_view(back))
    assert len(run.cause) + len(run.detail) + len(run.cancel_reason) <= _MAX_WORDS
    return back


def shown_node(node: Node, *, link: LinkMode, tags: dict[str, str], version: str, clock_skew: float | None) -> None:
    """Stores and shows a node with what its agent says of itself."""
    known = replace(node, link=link, tags=tags, agent_version=version, clock_skew=clock_skew)
    _check_columns(NODE.changes(known))
    node_message(known, attached=True, serf_status="alive").SerializeToString()
    json_bytes(node_view(known))


def stored_chunk(chunk: OutputChunk) -> None:
    """Stores and shows a chunk."""
    values = CHUNK.fixed(chunk)
    _check_columns(values)
    message = chunk_message(CHUNK.decode([values[column.name] for column in CHUNK.columns]))
    message.SerializeToString()
    message.read_at.ToDatetime()


def _check_columns(values: dict[str, Any]) -> None:
    """What SQLite takes: 64-bit integers, text of UTF-8; and it keeps no NaN."""
    for name, value in values.items():
        match value:
            case int():
                assert -(2**63) <= value < 2**63, name
            case float():
                assert math.isfinite(value), name
            case str():
                value.encode()
