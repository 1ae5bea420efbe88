"""Which serf queries ring which nodes: one query for any number of targets (the rules: ``core.serf.doorbell``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from shovey_trio.core.serf.doorbell import (
    DOORBELL_SIZE,
    Audience,
    Doorbell,
    Signer,
    build_bloom,
    encode,
    false_wake_rate,
)
from shovey_trio.core.serf.size import NameDoesNotFit, QueryFrame, query_timeout
from shovey_trio.core.serf.wire import DOORBELL_QUERY, QUERY_SIZE_LIMIT, QUERY_SIZE_SHARED

#: Each woken target gets this much of the time over which they spread.
SPREAD_PER_TARGET_MS: Final = 5
#: Largest accepted share of false wakes, by the size of the query that carries the filter: in a small query up to about
#: 100 targets, in a large one up to about 500. Beyond that a filter would be mostly ones.
BLOOM_STEPS: Final = ((QUERY_SIZE_SHARED, 0.001), (QUERY_SIZE_LIMIT, 0.004))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedQuery:
    """One serf query, ready to be issued.

    Attributes:
        name: query name.
        payload: query payload.
        filter_nodes: serf names; empty is no filter.
        targets: serf names that are meant, whoever else receives it.
        request_ack: whether serf agents acknowledge.
        timeout: seconds that the query stays open.
        size: raw bytes of the encoded query, at most.
        filter_tags: tag to unanchored regular expression.
    """

    name: str
    payload: bytes
    filter_nodes: tuple[str, ...]
    targets: tuple[str, ...]
    request_ack: bool
    timeout: float
    size: int
    filter_tags: tuple[tuple[str, str], ...] = ()


def doorbell_frame(source_node: str, members: int) -> QueryFrame:
    """The frame of every doorbell query, for the planner and for ``check_names``.

    Args:
        source_node: serf name of the agent that will send it.
        members: size of the cluster, which decides how long the query stays open.
    """
    return QueryFrame(source_node=source_node, query_name=DOORBELL_QUERY, timeout=query_timeout(members))


def plan_doorbells(
    doorbell: Doorbell,
    targets: Sequence[str],
    *,
    signer: Signer,
    source_node: str,
    members: int,
    limit: int = QUERY_SIZE_LIMIT,
) -> tuple[PlannedQuery, ...]:
    """The queries that ring ``targets``: none for none, else exactly one.

    Args:
        doorbell: what to say; its audience, filter and spread are filled in here.
        targets: full serf names, without repetition.
        signer: the organization's signing key.
        source_node: serf name of the agent that will send it.
        members: size of the cluster.
        limit: the agent's ``query_size_limit``.

    Raises:
        NameDoesNotFit: the source agent's own name is so long that no doorbell fits beside it.
    """
    if not targets:
        return ()
    frame = doorbell_frame(source_node, members)
    spread = min(len(targets) * SPREAD_PER_TARGET_MS, 2**32 - 1)
    base = replace(doorbell, audience=Audience.LISTED, bloom=b"", spread_ms=spread)

    # FilterNodes are worth their bytes only while three queries still share a packet.
    if frame.size(DOORBELL_SIZE, targets) <= min(QUERY_SIZE_SHARED, limit):
        return (_query(frame, encode(base, signer), targets, filter_nodes=tuple(targets)),)
    for step, rate in BLOOM_STEPS:
        size = frame.room(min(step, limit)) - DOORBELL_SIZE
        if false_wake_rate(len(targets), size) <= rate:
            bloom = build_bloom(targets, doorbell.job_id, size)
            return (_query(frame, encode(replace(base, audience=Audience.BLOOM, bloom=bloom), signer), targets),)
    if frame.size(DOORBELL_SIZE) > limit:
        raise NameDoesNotFit(f"no doorbell fits beside the name of the agent {source_node!r}", node=source_node)
    return (_query(frame, encode(replace(base, audience=Audience.ALL), signer), targets),)


def _query(
    frame: QueryFrame, payload: bytes, targets: Sequence[str], filter_nodes: tuple[str, ...] = ()
) -> PlannedQuery:
    return PlannedQuery(
        name=frame.query_name,
        payload=payload,
        filter_nodes=filter_nodes,
        targets=tuple(targets),
        # Without a filter every member would acknowledge, targets or not.
        request_ack=bool(filter_nodes),
        timeout=frame.timeout,
        size=frame.size(len(payload), filter_nodes),
    )
