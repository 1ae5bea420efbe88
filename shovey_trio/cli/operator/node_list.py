"""``shovey node list``: the registered nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions, tag_pairs
from shovey_trio.cli.text.output_formats import Column, Format, Shape, output_option, write_listing
from shovey_trio.core.errors import Exit
from shovey_trio.core.jobs.model import Presence

if TYPE_CHECKING:
    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.v1.node_pb2 import Node

# Seconds that a clock may be off, the way of a message included, before it is worth a word.
_SHOWN_SKEW = 1.0


@click.command("list")
@click.option("--match", default="", metavar="PATTERN", help="Only nodes whose name matches, such as 'web-*'.")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    callback=tag_pairs,
    metavar="KEY=VALUE",
    help="Only nodes with this tag; repeat for more.",
)
@click.option(
    "--presence",
    "presences",
    multiple=True,
    type=click.Choice([presence.value for presence in Presence]),
    help="Only nodes that are so.",
)
@output_option
@click.pass_obj
def list_nodes(
    options: OperatorOptions,
    *,
    match: str,
    tags: dict[str, str],
    presences: tuple[str, ...],
    output: Format | None,
) -> None:
    """List the registered nodes by name."""
    from shovey_trio.cli.operator.session import load_settings, run_session
    from shovey_trio.rpc.convert import PRESENCES

    settings = load_settings(options)
    wanted = [PRESENCES.number(Presence(presence)) for presence in presences]

    async def work(session: ControllerSession) -> Exit:
        with session.call():
            nodes = await session.client.list_nodes(match=match, tags=tags, presences=wanted).take()
        write_listing(nodes, _shape(), output or Format(settings.client.output))
        return Exit.OK

    run_session(settings, work)


def presence_word(node: Node) -> str:
    """Whether the node is up, as a word."""
    from shovey_trio.cli.text.plain import enum_word
    from shovey_trio.v1.node_pb2 import NodePresence

    return enum_word(NodePresence.DESCRIPTOR, node.status.presence) or "unspecified"


def link_word(node: Node) -> str:
    """How the node's agent keeps contact, as a word."""
    from shovey_trio.cli.text.plain import enum_word
    from shovey_trio.v1.node_pb2 import LinkMode

    return (enum_word(LinkMode.DESCRIPTOR, node.link) or "").replace("_", "-")


def skew_word(node: Node) -> str:
    """How far the node's clock is off the controller's; empty while nobody need care or know."""
    if not node.HasField("clock_skew"):
        return ""
    skew = node.clock_skew.ToMicroseconds() / 1e6
    return f"{skew:+.1f}s" if abs(skew) >= _SHOWN_SKEW else ""


def serf_word(node: Node) -> str:
    """What serf says of the node's member; of a node that only serf can wake, also that there is none."""
    from shovey_trio.v1.node_pb2 import LINK_MODE_ON_DEMAND

    alone = node.link == LINK_MODE_ON_DEMAND and not node.serf_status
    return f"no member {node.organization}:{node.name}" if alone else node.serf_status


def _shape() -> Shape[Node]:
    from shovey_trio.cli.text.times import age

    now = time.time()
    return Shape(
        columns=(
            Column(title="NODE", of=lambda node: node.name),
            Column(title="PRESENCE", of=presence_word),
            Column(title="LINK", of=link_word),
            Column(title="VERSION", of=lambda node: node.agent_version),
            Column(title="LAST SEEN", of=lambda node: "now" if node.attached else age(node.last_seen_at, now=now)),
            Column(title="CLOCK", of=skew_word),
            Column(title="TAGS", of=lambda node: ",".join(f"{key}={node.tags[key]}" for key in sorted(node.tags))),
        ),
        name=lambda node: node.name,
        nothing="no nodes",
    )
