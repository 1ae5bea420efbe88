"""``shovey login renew``: a fresh certificate for the user's key, from the controller, with no admin."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions

if TYPE_CHECKING:
    from shovey_trio.config.operator import ClientSection
    from shovey_trio.identity.user_certificate import UserCertificate


@click.command()
@click.option("--now", "at_once", is_flag=True, help="Also when it is not due.")
@click.pass_obj
def renew(options: OperatorOptions, *, at_once: bool) -> None:
    """Exchange your certificate for a fresh one, from 30 days before its end to 90 days after it.

    Your key stays what it is. A certificate that was revoked is not renewed. From cron once a day: nothing is asked of
    the controller while nothing is due.
    """
    import trio

    from shovey_trio.cli.operator.session import load_settings
    from shovey_trio.identity.files import write_public
    from shovey_trio.identity.user_certificate import moment

    section = (settings := load_settings(options)).client
    own = settings.read_certificate()
    if not (at_once or own.is_due(time.time())):
        click.echo(f"{own} is valid until {moment(own.expires_at)}: nothing to do yet; --now renews it all the same")
        return
    fresh = trio.run(_ask, section, own)
    # The CA first: it goes on vouching for what was there before.
    if fresh.ca != own.ca:
        write_public(section.ca_file, fresh.ca)
    write_public(own.file, fresh.chain)
    click.echo(f"{own} is valid until {moment(fresh.expires_at)} now")


async def _ask(section: ClientSection, own: UserCertificate) -> UserCertificate:
    """What the controller answers.

    Raises:
        Unreachable: it cannot be asked.
        RpcError: it refuses.
        CertificateUnusable: what it answers does not fit our key.
    """
    import trio

    from shovey_trio.identity.renewal import prove_possession
    from shovey_trio.identity.requests import load_private_key, make_request
    from shovey_trio.rpc import methods
    from shovey_trio.rpc.bridge import ChannelOptions, ClientTls, RpcError, open_channel
    from shovey_trio.rpc.client.retry import unreachable
    from shovey_trio.v1 import agent_service_pb2 as pb

    key = load_private_key(own.private_key)
    csr = make_request(key)
    request = pb.RenewRequest(certificate=own.chain, csr=csr, proof=prove_possession(key, csr))
    address = section.enroll_address
    channel_options = ChannelOptions(server_name=section.server_name or None)
    try:
        with trio.fail_after(section.call_deadline):
            async with open_channel(address, ClientTls(ca=own.ca), options=channel_options) as channel:
                answer = await channel.unary(methods.RENEW, request)
    except RpcError as error:
        raise unreachable(error, address) from error
    return own.renewed(chain=answer.certificate_chain, ca=answer.ca_certificates)
