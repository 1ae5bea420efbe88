"""``shovey explain``: would this run there, and which rule decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.command_input import plain_input_options
from shovey_trio.cli.operator.options import OperatorOptions
from shovey_trio.cli.text.output_formats import Column, Format, Shape, output_option, write_document, write_listing
from shovey_trio.core.errors import Exit

if TYPE_CHECKING:
    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.v1.job_service_pb2 import ExplainRunResponse, ExplainStep


@click.command()
@click.argument("command")
@click.argument("node")
@click.option("--as", "as_user", default="", metavar="USER", help="Ask for another user; for admins.")
@plain_input_options
@click.option("--stdin-bytes", type=click.IntRange(min=0), default=0, help="Length of the standard input.")
@output_option
@click.pass_obj
def explain(
    options: OperatorOptions,
    *,
    command: str,
    node: str,
    as_user: str,
    args: dict[str, str],
    env: dict[str, str],
    user: str,
    stdin_bytes: int,
    output: Format | None,
) -> None:
    """Say whether COMMAND would run on NODE and which rule decides, on the controller and on the node.

    Nothing is started. Exit code 0: it would run; 4: a rule refuses; 1: it cannot be known now.
    """
    from shovey_trio.cli.operator.session import load_settings, run_session
    from shovey_trio.v1.job_service_pb2 import ExplainRunRequest

    settings = load_settings(options)
    chosen = output or Format(settings.client.output)
    request = ExplainRunRequest(
        command=command, node=node, as_user=as_user, args=args, env=env, user=user, stdin_bytes=stdin_bytes
    )

    async def work(session: ControllerSession) -> Exit:
        with session.call():
            answer = await session.client.explain_run(request)
        return _write(answer, chosen)

    run_session(settings, work)


def _write(answer: ExplainRunResponse, output: Format) -> Exit:
    from shovey_trio.cli.text.plain import plain_message
    from shovey_trio.v1 import job_service_pb2 as pb

    if output in {Format.JSON, Format.YAML}:
        write_document(plain_message(answer), output)
    else:
        write_listing(answer.steps, _STEPS, output)
    if answer.verdict == pb.VERDICT_ALLOWED:
        return Exit.OK
    return Exit.DENIED if answer.verdict == pb.VERDICT_REFUSED else Exit.RUNS_FAILED


def _verdict(step: ExplainStep) -> str:
    from shovey_trio.cli.text.plain import enum_word
    from shovey_trio.v1.job_service_pb2 import Verdict

    return enum_word(Verdict.DESCRIPTOR, step.verdict) or "unknown"


_STEPS: Shape[ExplainStep] = Shape(
    columns=(
        Column(title="RULE", of=lambda step: step.rule),
        Column(title="VERDICT", of=_verdict),
        Column(title="WHY", of=lambda step: step.detail),
    ),
    name=lambda step: step.rule,
    nothing="no rule",
)
