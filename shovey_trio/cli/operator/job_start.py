"""``shovey job start``: start a job and, unless it is sent to the background, stay attached to it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import click

from shovey_trio.cli.operator.command_input import input_options, read_input
from shovey_trio.cli.operator.options import (
    OperatorOptions,
    fail_on_truncation_option,
    positive_seconds,
    tag_pairs,
)
from shovey_trio.cli.text.output_formats import Column, Format, Shape, output_option, write_document, write_listing
from shovey_trio.core.errors import Exit, Unreachable

if TYPE_CHECKING:
    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.v1.job_service_pb2 import ResolvedTarget, StartJobRequest, StartJobResponse, Target


@click.command()
@click.argument("command")
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option("--all", "every", is_flag=True, help="Run on every registered node.")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    callback=tag_pairs,
    metavar="KEY=VALUE",
    help="Run on nodes with this tag; repeat for more.",
)
@click.option("--match", metavar="PATTERN", help="Run on nodes whose name matches, such as 'web-*'.")
@click.option(
    "--search", metavar="QUERY", help="Run on nodes that a query finds, such as 'tags:role=web AND name:*.eu'."
)
@click.option("-q", "--quorum", default="", metavar="N|P%", help="Nodes that must be up first.  [default: 100%]")
@click.option(
    "--timeout",
    callback=positive_seconds,
    metavar="DURATION",
    help="Time for the command on a node.  [default: the controller's]",
)
@click.option(
    "--kill-grace",
    callback=positive_seconds,
    metavar="DURATION",
    help="Time between TERM and KILL.  [default: the controller's]",
)
@input_options
@click.option("-b", "--background", is_flag=True, help="Print the job's id and return.")
@click.option("--dry-run", is_flag=True, help="Show which nodes it would run on, and start nothing.")
@click.option("--request-id", metavar="ID", help="Start at most one job for this id.  [default: a fresh one]")
@click.option("--no-output", is_flag=True, help="Do not show what the commands write.")
@fail_on_truncation_option
@output_option
@click.pass_obj
def start(
    options: OperatorOptions,
    /,
    *,
    command: str,
    nodes: tuple[str, ...],
    every: bool,
    tags: dict[str, str],
    match: str | None,
    search: str | None,
    quorum: str,
    timeout: float | None,  # the command's time on the node
    kill_grace: float | None,
    background: bool,
    dry_run: bool,
    request_id: str | None,
    no_output: bool,
    fail_on_truncation: bool,
    output: Format | None,
    **given: Any,
) -> None:
    """Start COMMAND, the name of a whitelist entry, on the given nodes and follow it.

    Ctrl-C detaches after two seconds and the job goes on; pressed again within them it cancels the job and waits for
    the proof that its processes are gone; a third one leaves at once.
    """
    target = _target(nodes, every=every, tags=tags, match=match, search=search)
    wanted = read_input(**given)

    from shovey_trio.cli.operator.session import load_settings, run_session
    from shovey_trio.rpc.convert import duration
    from shovey_trio.v1.job_service_pb2 import StartJobRequest

    request = StartJobRequest(
        request_id=request_id or uuid.uuid4().hex,
        command=command,
        target=target,
        quorum=quorum,
        dry_run=dry_run,
        args=wanted.args,
        env=wanted.env,
        user=wanted.user,
        stdin=wanted.stdin,
        secret_env=wanted.secret_env,
        secret_stdin=wanted.secret_stdin,
    )
    if timeout is not None:
        request.run_timeout.CopyFrom(duration(timeout))
    if kill_grace is not None:
        request.kill_grace.CopyFrom(duration(kill_grace))
    settings = load_settings(options)
    chosen = output or Format(settings.client.output)

    async def work(session: ControllerSession) -> Exit:
        answer = await _start(session, request)
        if dry_run:
            write_listing(answer.targets, _TARGETS, chosen)
            return Exit.OK
        if background:
            _write_started(answer, chosen)
            return Exit.OK
        return await _stay_attached(
            session, answer, chosen, include_output=not no_output, fail_on_truncation=fail_on_truncation
        )

    run_session(settings, work)


async def _start(session: ControllerSession, request: StartJobRequest) -> StartJobResponse:
    """Start the job; whoever does not get the answer learns how to ask for it again."""
    import trio

    try:
        with session.call():
            return await session.client.start_job(request)
    except Unreachable as error:
        if not request.dry_run:
            error.message += (
                f"; whether it started is unknown: --request-id {request.request_id} starts it at most once"
            )
        raise
    except trio.Cancelled:  # by Ctrl-C: the deadline's own ends within ``session.call``
        if not request.dry_run:
            click.echo(
                f"whether the job started is unknown: --request-id {request.request_id} starts it at most once",
                err=True,
            )
        raise


async def _stay_attached(
    session: ControllerSession,
    answer: StartJobResponse,
    output: Format,
    *,
    include_output: bool,
    fail_on_truncation: bool,
) -> Exit:
    from shovey_trio.cli.operator.attach import Attachment

    job = answer.job
    if output is not Format.JSONL:
        click.echo(f"job {job.id} started on {job.run_total} node{'s' if job.run_total != 1 else ''}", err=True)
    attachment = Attachment(session, job.id, output, include_output=include_output)
    return await attachment.follow(fail_on_truncation=fail_on_truncation)


def _write_started(answer: StartJobResponse, output: Format) -> None:
    from shovey_trio.cli.text.plain import plain_message

    if output in {Format.TABLE, Format.NAME}:
        click.echo(answer.job.id)
        if output is Format.TABLE:
            click.echo(f"follow it with: shovey job watch {answer.job.id}", err=True)
    else:
        write_document(plain_message(answer.job), output)


def _target(
    nodes: tuple[str, ...], *, every: bool, tags: dict[str, str], match: str | None, search: str | None
) -> Target:
    """The one selection that was made.

    Raises:
        click.UsageError: none, or more than one.
    """
    if sum(map(bool, (nodes, every, tags, match, search))) != 1:
        raise click.UsageError("say which nodes: names, or one of --all, --tag, --match and --search")
    from shovey_trio.v1.job_service_pb2 import NodeNames, TagSelection, Target

    if nodes:
        return Target(nodes=NodeNames(names=nodes))
    if every:
        return Target(all=True)
    if match:
        return Target(match=match)
    if search:
        return Target(search=search)
    return Target(tags=TagSelection(tags=tags))


def _route(target: ResolvedTarget) -> str:
    from shovey_trio.cli.text.plain import enum_word
    from shovey_trio.v1.job_pb2 import Route

    return enum_word(Route.DESCRIPTOR, target.route) or "none"


_TARGETS: Shape[ResolvedTarget] = Shape(
    columns=(
        Column(title="NODE", of=lambda target: target.node),
        Column(title="UP", of=lambda target: "up" if target.up else "down"),
        Column(title="ROUTE", of=_route),
    ),
    name=lambda target: target.node,
    nothing="no node",
)
