"""What ``shovey-trio doctor`` finds on the network: the two ports, and the serf agent with its limits."""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Sequence
from typing import Final

import trio

from shovey_trio.cli.controller.doctor_checks import Finding, Status
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.ports import probe_port
from shovey_trio.core.addresses import reachable_address, split_address
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.jobs.model import Node
from shovey_trio.core.serf.doorbell import DOORBELL_SIZE
from shovey_trio.core.serf.doorbell_plan import doorbell_frame
from shovey_trio.core.serf.size import check_names, timeout_ns
from shovey_trio.core.serf.wire import DOORBELL_QUERY, QUERY_SIZE_LIMIT, Command
from shovey_trio.identity.authority import INTERNAL_NAME
from shovey_trio.identity.files import read_public, read_secret
from shovey_trio.serf.connection import SerfConnection, open_connection
from shovey_trio.serf.errors import SerfAuthFailed, SerfRefused

# Seconds for a handshake with whoever answers on this host.
_PATIENCE: Final = 5.0
# No agent is configured to take a query of this size, so it is refused, by a message that tells the limit.
_PROBE_BYTES: Final = 2**20
_LIMIT_MESSAGE: Final = re.compile(r"query exceeds limit of (\d+) bytes")
# What one gossip packet carries; a larger query is accepted and never leaves the agent (docs/serf.md).
_LARGEST_QUERY: Final = {False: 1395, True: 1366}
# Depths of serf's query queue at which the dispatcher slows down and stops.
_QUEUE_SLOW: Final = 64
_NAMES_SHOWN: Final = 5


async def check_ports(settings: ServerSettings) -> Sequence[Finding]:
    """Whether the listeners' ports are free, or served by this very set-up."""
    return [
        await _check_port(settings, "control", settings.server.control_listen),
        await _check_port(settings, "enroll", settings.server.enroll_listen),
    ]


async def check_serf(settings: ServerSettings, nodes: Sequence[Node]) -> Sequence[Finding]:
    """Whether serf can be reached and used, its limits, and which nodes no query can name."""
    serf = settings.serf
    if not serf.enabled:
        return [Finding(check="serf", status=Status.OK, message="not used: nodes are reached over their streams alone")]
    host, port = split_address(serf.address)
    try:
        auth_key = read_secret(serf.auth_key_file).decode().strip() if serf.auth_key_file else None
        with trio.fail_after(_PATIENCE):
            stream = await trio.open_tcp_stream(host, port)
            async with open_connection(stream, auth_key=auth_key) as connection:
                return await _check_agent(settings, connection, nodes)
    except SerfAuthFailed as exc:
        return [_serf_failure(exc.message, "set serf.auth_key_file to a file with the agent's rpc_auth")]
    except (OSError, trio.TooSlowError) as exc:
        problem = "no answer" if isinstance(exc, trio.TooSlowError) else exc.strerror or str(exc)
        advice = "start the serf agent, correct serf.address, or set serf.enabled = false"
        return [_serf_failure(f"{serf.address}: {problem}", advice)]
    except ShoveyError as exc:
        return [_serf_failure(f"{serf.address}: {exc.message}", "is this port serf's RPC port?")]


async def _check_agent(settings: ServerSettings, connection: SerfConnection, nodes: Sequence[Node]) -> list[Finding]:
    stats = await connection.stats()
    name, figures = stats["agent"]["name"], stats["serf"]
    members, encrypted = int(figures["members"]), figures.get("encrypted") == "true"
    findings = [
        Finding(
            check="serf",
            status=Status.OK,
            message=f"agent {name}, {members} members, gossip {'encrypted' if encrypted else 'not encrypted'}",
        )
    ]
    wanted = settings.serf.node_name
    if wanted and wanted != name:
        findings.append(
            Finding(
                check="serf",
                status=Status.WARN,
                message=f"serf.node_name is {wanted!r}, the agent calls itself {name!r}",
                advice="leave serf.node_name empty, or start the agent with -node of that name",
            )
        )
    depth = int(figures.get("query_queue", "0"))
    if depth > _QUEUE_SLOW:
        findings.append(
            Finding(
                check="serf",
                status=Status.WARN,
                message=f"{depth} queries wait in the agent",
                advice="something asks more than gossip carries; doorbells are slowed down meanwhile",
            )
        )
    limit = await _query_limit(connection, name)
    findings.append(_judge_limit(limit, configured=settings.serf.query_size_limit, largest=_LARGEST_QUERY[encrypted]))
    effective = min(limit or QUERY_SIZE_LIMIT, settings.serf.query_size_limit)
    findings.append(_check_node_names(settings, nodes, source=name, members=members, limit=effective))
    return findings


async def _query_limit(connection: SerfConnection, name: str) -> int | None:
    """The agent's ``query_size_limit``; None when it does not tell."""
    query = {
        "FilterNodes": [name],
        "FilterTags": {},
        "RequestAck": False,
        "RelayFactor": 0,
        "Timeout": timeout_ns(1.0),
        "Name": DOORBELL_QUERY,
        "Payload": bytes(_PROBE_BYTES),
    }
    try:
        await connection.command(Command.QUERY, query)
    except SerfRefused as exc:
        found = _LIMIT_MESSAGE.search(exc.message) or _LIMIT_MESSAGE.search(exc.details.get("error", ""))
        return int(found[1]) if found else None
    return _PROBE_BYTES


def _judge_limit(limit: int | None, *, configured: int, largest: int) -> Finding:
    advice = ""
    if limit is None:
        status, message = Status.WARN, "the agent does not tell its query_size_limit"
    elif limit > largest:
        status, message = Status.WARN, f"query_size_limit is {limit}; above {largest} a query is taken and never sent"
        advice = f"set it to {largest} or less in the agent's configuration"
    elif limit < configured:
        status, message = Status.FAIL, f"the agent's query_size_limit is {limit}, serf.query_size_limit is {configured}"
        advice = f"set serf.query_size_limit = {limit}, or raise the agent's"
    else:
        status, message = Status.OK, f"queries of up to {limit} bytes"
    return Finding(check="serf", status=status, message=message, advice=advice)


def _check_node_names(
    settings: ServerSettings, nodes: Sequence[Node], *, source: str, members: int, limit: int
) -> Finding:
    problems = check_names(
        (f"{settings.server.organization}:{node.name}" for node in nodes),
        frame=doorbell_frame(source, members),
        payload_size=DOORBELL_SIZE,
        limit=limit,
    )
    if not problems:
        return Finding(check="node names", status=Status.OK, message=f"{len(nodes)} names fit a serf query")
    shown = ", ".join(f"{problem.name} ({problem.fault})" for problem in problems[:_NAMES_SHOWN])
    more = f" and {len(problems) - _NAMES_SHOWN} more" if len(problems) > _NAMES_SHOWN else ""
    return Finding(
        check="node names",
        status=Status.FAIL,
        message=f"serf cannot name {shown}{more}",
        advice='enrol them under shorter names, or keep them attached (link = "attached")',
    )


async def _check_port(settings: ServerSettings, name: str, address: str) -> Finding:
    check = f"{name} port"
    if split_address(address)[1] == 0:
        return Finding(check=check, status=Status.OK, message=f"{address}: any free port")
    try:
        await trio.to_thread.run_sync(probe_port, address)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return await _check_listener(settings, check, address)
        advice = f"correct server.{name}_listen: this must be an address of this host, and a port we may use"
        return Finding(check=check, status=Status.FAIL, message=f"{address}: {exc.strerror or exc}", advice=advice)
    return Finding(check=check, status=Status.OK, message=f"{address} is free (serve is not running)")


async def _check_listener(settings: ServerSettings, check: str, address: str) -> Finding:
    """Somebody listens: it is us if it has a certificate of our CA."""
    host, port = split_address(reachable_address(address))
    try:
        context = ssl.create_default_context(cadata=read_public(settings.directory.ca_certificate).decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        with trio.fail_after(_PATIENCE):
            tcp = await trio.open_tcp_stream(host, port)
            async with tcp:
                tls = trio.SSLStream(tcp, context, server_hostname=INTERNAL_NAME)
                await tls.do_handshake()
    except (OSError, ValueError, trio.BrokenResourceError, trio.TooSlowError, ShoveyError) as exc:
        return Finding(
            check=check,
            status=Status.FAIL,
            message=f"{address} is used by another program ({_cause(exc)})",
            advice="stop it, or choose another port",
        )
    return Finding(check=check, status=Status.OK, message=f"{address} is served by this set-up")


def _serf_failure(message: str, advice: str) -> Finding:
    return Finding(check="serf", status=Status.FAIL, message=message, advice=advice)


def _cause(exc: BaseException) -> str:
    root = exc.__cause__ if isinstance(exc, trio.BrokenResourceError) and exc.__cause__ else exc
    if isinstance(root, ssl.SSLCertVerificationError):
        return "its certificate is not of our CA"
    if isinstance(root, trio.TooSlowError):
        return "it does not answer"
    return "it does not speak our TLS"
