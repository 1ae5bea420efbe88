"""Enrolment and renewal: the key is made on the node and never leaves it; a certificate request does.

What enrolment goes by is on this node's disk before the token is used: a disk that cannot be written costs no token,
and after an answer that was lost the same join string serves again. The calls to the controller are passed in;
``call_enroll`` and ``call_renew`` perform them.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shovey_agent.credentials import Attempt, Credentials, CredentialStore, NotEnrolled, check_issued
from shovey_agent.desk.launcher_trust import save_trust
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_agent.run.accounts import Account, AccountUnusable, acting_as, resolve_account
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.enrollment import JoinTicket
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import NodeIdentity
from shovey_trio.identity.files import SECRET_DIRECTORY_MODE, make_secret_directory, write_secret
from shovey_trio.identity.names import node_identity
from shovey_trio.identity.renewal import prove_possession
from shovey_trio.identity.requests import load_private_key, make_private_key, make_request, private_key_pem
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import ClientTls, open_channel
from shovey_trio.rpc.convert import keys_value
from shovey_trio.v1 import agent_service_pb2 as pb


class AlreadyEnrolled(ShoveyError):
    """The state directory holds credentials already; ``identity`` says whose."""

    reason, code, http, exit = "ALREADY_ENROLLED", Code.ALREADY_EXISTS, 409, Exit.CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollCall:
    """What the controller is asked; the fields are those of EnrollRequest."""

    enroll_address: str
    ca_certificates: bytes
    token: str = field(repr=False)
    organization: str
    node: str
    csr: bytes
    agent_instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollAnswer:
    """What the controller answers; the fields are those of EnrollResponse."""

    certificate_chain: bytes
    ca_certificates: bytes
    signing_keys: PublishedKeys
    control_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewCall:
    """A renewal; the fields are those of RenewRequest, and where to send it."""

    enroll_address: str
    ca_certificates: bytes
    certificate: bytes
    csr: bytes
    proof: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewAnswer:
    """What the controller answers; the fields are those of RenewResponse."""

    certificate_chain: bytes
    ca_certificates: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """An agent in two parts: who gets what.

    Attributes:
        account: the network part's; credentials are written as it, in its own directory. None for this process's own.
        launcher_dir: what the launcher must know goes here, and the network part cannot write it.
    """

    account: Account | None
    launcher_dir: Path


class CannotSplit(ShoveyError):
    """This process cannot give one part of an agent to another account; the message says why."""

    reason, code, http, exit = "CANNOT_SPLIT", Code.FAILED_PRECONDITION, 500, Exit.USAGE


def prepare_split(state_dir: Path, launcher_dir: Path, *, user: str) -> Split:
    """Makes the network part's directory, for its account alone, and says who gets what. Blocks.

    Raises:
        CannotSplit: there is no such account, or this is not root.
        OSError: the directory cannot be made.
    """
    try:
        account = resolve_account(user, "")
    except AccountUnusable as error:
        raise CannotSplit(str(error)) from error
    state_dir.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        # Only what was made just now is given away: what is there already may have been put there by anybody.
        state_dir.mkdir(mode=SECRET_DIRECTORY_MODE)
        if account is not None:
            os.chown(state_dir, account.uid, account.gid, follow_symlinks=False)
    return Split(account=account, launcher_dir=launcher_dir)


async def enroll(
    join: JoinTicket,
    store: CredentialStore,
    call: Callable[[EnrollCall], Awaitable[EnrollAnswer]],
    *,
    again: bool = False,
    split: Split | None = None,
) -> Credentials:
    """Exchanges a join string for credentials and stores them.

    Cancelled, or failed at any point, it may be tried again here with the same join string.

    Args:
        join: what the controller's ``node token`` printed.
        store: where the credentials go.
        call: performs the RPC.
        again: replace credentials that are there; the node becomes a new instance.
        split: for an agent in two parts.

    Raises:
        AlreadyEnrolled: there are credentials and ``again`` is not set.
        LauncherNotSetUp: with ``split``, when the controller has no root key.
        NodeProtocolError: the controller's answer is not for this key, this name or this organization.
        KeySetRefused: its signing keys are not those of the organization that the join string is from.
        OSError: what this node must keep cannot be written; before the call, the token is not used.
        And whatever ``call`` raises.
    """
    identity = node_identity(join.organization, join.node)
    account = None if split is None else split.account
    if not again:
        await run_in_thread(_refuse_enrolled, store, account)
    attempt = await run_in_thread(_prepare, store, join, split)
    key, instance = load_private_key(attempt.private_key), attempt.agent_instance
    answer = await call(
        EnrollCall(
            enroll_address=join.enroll_address,
            ca_certificates=x509.load_der_x509_certificate(join.ca_certificate).public_bytes(Encoding.PEM),
            token=join.token,
            organization=join.organization,
            node=join.node,
            csr=make_request(key),
            agent_instance=instance,
        )
    )
    credentials = Credentials(
        organization=identity.organization,
        node=identity.name,
        agent_instance=instance,
        enroll_address=join.enroll_address,
        control_address=answer.control_address,
        certificate_chain=answer.certificate_chain,
        ca_certificates=answer.ca_certificates,
        private_key=attempt.private_key,
    )
    check_issued(credentials)
    # The join string vouches for the root key; one from before there were root keys leaves that to the controller, for
    # whose listener the string's CA vouches.
    keys = TrustedKeys.unset(store.signing_keys, identity.organization, root_public_key=join.root_public_key)

    def write() -> None:
        # Keys first: credentials are what says that this node is enrolled.
        if split is not None:
            node = NodeIdentity(organization=identity.organization, node=identity.name, agent_instance=instance)
            save_trust(split.launcher_dir, node, answer.signing_keys, root_public_key=join.root_public_key)
        with acting_as(account):
            keys.learn(answer.signing_keys)
            store.save(credentials)

    await run_in_thread(write)
    return credentials


async def renew(
    credentials: Credentials, store: CredentialStore, call: Callable[[RenewCall], Awaitable[RenewAnswer]]
) -> Credentials:
    """Exchanges credentials for fresh ones with a new key and stores them; the old ones hold until they expire.

    Cancelled at any moment, either the old or the new credentials are stored, whole.

    Raises:
        NodeProtocolError: the controller's answer is not for this key, this name or this organization.
        And whatever ``call`` raises.
    """
    key = make_private_key()
    csr = make_request(key)
    answer = await call(
        RenewCall(
            enroll_address=credentials.enroll_address,
            ca_certificates=credentials.ca_certificates,
            certificate=credentials.certificate_chain,
            csr=csr,
            proof=prove_possession(load_private_key(credentials.private_key), csr),
        )
    )
    fresh = replace(
        credentials,
        certificate_chain=answer.certificate_chain,
        ca_certificates=answer.ca_certificates,
        private_key=private_key_pem(key),
    )
    check_issued(fresh)
    await run_in_thread(store.save, fresh)
    return fresh


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


def _prepare(store: CredentialStore, join: JoinTicket, split: Split | None) -> Attempt:
    """What the enrolment goes by, on this node's disk; whoever writes here can write the rest."""
    if split is not None:
        make_secret_directory(split.launcher_dir)
        probe = split.launcher_dir / ".probe"
        write_secret(probe, b"")
        probe.unlink()
    with acting_as(None if split is None else split.account):
        return store.attempt(join.token)


def _refuse_enrolled(store: CredentialStore, account: Account | None) -> None:
    try:
        with acting_as(account):
            found = store.load()
    except NotEnrolled:
        return
    raise AlreadyEnrolled(
        f"this node is enrolled as {found.organization}:{found.node} (in {store.state_dir})",
        identity=f"{found.organization}:{found.node}",
    )
