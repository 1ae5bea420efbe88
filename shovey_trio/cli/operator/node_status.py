"""``shovey node status``: which nodes are up and why; of one node its history too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.node_list import link_word, presence_word, serf_word, skew_word
from shovey_trio.cli.operator.options import OperatorOptions
from shovey_trio.cli.text.output_formats import Column, Format, Shape, output_option, write_document, write_listing
from shovey_trio.core.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.v1.node_pb2 import Node, NodeStatus


@click.command()
@click.argument("node", required=False)
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Entries of history; 0 for all."
)
@output_option
@click.pass_obj
def status(options: OperatorOptions, *, node: str | None, limit: int, output: Format | None) -> None:
    """Show which nodes are up, since when and why; for one NODE also its history, newest first.

    "jsonl" lists the history of NODE alone.
    """
    from shovey_trio.cli.operator.session import load_settings, run_session

    settings = load_settings(options)
    chosen = output or Format(settings.client.output)

    async def work(session: ControllerSession) -> Exit:
        with session.call():
            if node is None:
                write_listing(await session.client.list_nodes().take(), _node_shape(), chosen)
            else:
                one = await session.client.get_node(node)
                history = await session.client.list_node_statuses(node).take(limit or None)
                _write_one(one, history, chosen)
        return Exit.OK

    run_session(settings, work)


def _write_one(node: Node, history: Sequence[NodeStatus], output: Format) -> None:
    from shovey_trio.cli.text.plain import plain_message

    match output:
        case Format.JSON | Format.YAML:
            document = {"node": plain_message(node), "history": [plain_message(status) for status in history]}
            write_document(document, output)
        case Format.NAME:
            click.echo(node.name)
        case Format.JSONL:
            write_listing(history, _history_shape(), output)
        case Format.TABLE:
            for title, text in _headlines(node):
                if text:
                    click.echo(f"{title:<9} {text}")
            click.echo()
            write_listing(history, _history_shape(), output)


def _headlines(node: Node) -> list[tuple[str, str]]:
    from shovey_trio.cli.text.terminal_text import printable
    from shovey_trio.cli.text.times import age, local_time

    now = time.time()
    since = f" since {local_time(node.status.since)} ({age(node.status.since, now=now)})"
    return [
        ("node", printable(node.name)),
        ("presence", presence_word(node) + since),
        ("why", printable(node.status.reason)),
        ("link", f"{link_word(node)}, {'attached now' if node.attached else 'not attached now'}"),
        ("serf", printable(serf_word(node))),
        ("agent", f"{printable(node.agent_version)} {node.agent_instance}".strip()),
        ("clock", skew_word(node)),
        ("seen", "now" if node.attached else f"{local_time(node.last_seen_at)} ({age(node.last_seen_at, now=now)})"),
        ("enrolled", local_time(node.enrolled_at)),
        ("tags", printable(",".join(f"{key}={node.tags[key]}" for key in sorted(node.tags)))),
    ]


def _node_shape() -> Shape[Node]:
    from shovey_trio.cli.text.times import age, local_time

    now = time.time()
    return Shape(
        columns=(
            Column(title="NODE", of=lambda node: node.name),
            Column(title="PRESENCE", of=presence_word),
            Column(title="WHY", of=lambda node: node.status.reason),
            Column(title="SINCE", of=lambda node: local_time(node.status.since)),
            Column(title="AGE", of=lambda node: age(node.status.since, now=now)),
            Column(title="ATTACHED", of=lambda node: "yes" if node.attached else "no"),
            Column(title="SERF", of=serf_word),
            Column(title="CLOCK", of=skew_word),
        ),
        name=lambda node: node.name,
        nothing="no nodes",
    )


def _history_shape() -> Shape[NodeStatus]:
    from shovey_trio.cli.text.plain import enum_word
    from shovey_trio.cli.text.times import age, local_time
    from shovey_trio.v1.node_pb2 import NodePresence

    now = time.time()
    return Shape(
        columns=(
            Column(title="SINCE", of=lambda entry: local_time(entry.since)),
            Column(title="AGE", of=lambda entry: age(entry.since, now=now)),
            Column(
                title="PRESENCE",
                of=lambda entry: enum_word(NodePresence.DESCRIPTOR, entry.presence) or "unspecified",
            ),
            Column(title="WHY", of=lambda entry: entry.reason),
        ),
        name=lambda entry: entry.reason,
        nothing="no history",
    )
