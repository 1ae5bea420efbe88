"""The RPCs of enrolment: the agent's side of AgentService.Enroll and Renew on the server-authenticated listener."""

from __future__ import annotations

from shovey_agent.net.enroll import EnrollAnswer, EnrollCall, RenewAnswer, RenewCall
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import ClientTls, open_channel
from shovey_trio.rpc.convert import keys_value
from shovey_trio.v1 import agent_service_pb2 as pb


async def call_enroll(call: EnrollCall) -> EnrollAnswer:
    """Performs the Enroll RPC.

    Raises:
        RpcError: refused, or unreachable.
    """
    async with open_channel(call.enroll_address, ClientTls(ca=call.ca_certificates)) as channel:
        answer = await channel.unary(
            methods.ENROLL,
            pb.EnrollRequest(
                token=call.token,
                organization=call.organization,
                node=call.node,
                csr=call.csr,
                agent_instance=call.agent_instance,
            ),
        )
    return EnrollAnswer(
        certificate_chain=answer.certificate_chain,
        ca_certificates=answer.ca_certificates,
        signing_keys=keys_value(answer.signing_keys),
        control_address=answer.control_address,
    )


async def call_renew(call: RenewCall) -> RenewAnswer:
    """Performs the Renew RPC.

    Raises:
        RpcError: refused, or unreachable.
    """
    async with open_channel(call.enroll_address, ClientTls(ca=call.ca_certificates)) as channel:
        answer = await channel.unary(
            methods.RENEW, pb.RenewRequest(certificate=call.certificate, csr=call.csr, proof=call.proof)
        )
    return RenewAnswer(certificate_chain=answer.certificate_chain, ca_certificates=answer.ca_certificates)
