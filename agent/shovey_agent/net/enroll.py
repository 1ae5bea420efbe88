"""Enrolment and renewal: the key is made on the node and never leaves it; a certificate request does.

The calls to the controller are passed in: nothing here knows gRPC.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shovey_agent.credentials import Credentials, CredentialStore, NotEnrolled, check_issued
from shovey_agent.desk.launcher_trust import save_trust
from shovey_agent.desk.trusted_keys import TrustedKeys
from shovey_agent.run.accounts import Account, acting_as
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.enrollment import JoinTicket
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import NodeIdentity
from shovey_trio.identity.names import node_identity
from shovey_trio.identity.renewal import prove_possession
from shovey_trio.identity.requests import load_private_key, make_private_key, make_request, private_key_pem
from shovey_trio.observe.threads import run_in_thread


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


async def enroll(
    join: JoinTicket,
    store: CredentialStore,
    call: Callable[[EnrollCall], Awaitable[EnrollAnswer]],
    *,
    again: bool = False,
    split: Split | None = None,
) -> Credentials:
    """Exchanges a join string for credentials and stores them.

    Cancelled during the call, the token may be used up and nothing is stored: ask for another.

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
        And whatever ``call`` raises.
    """
    identity = node_identity(join.organization, join.node)
    account = None if split is None else split.account
    if not again:
        await run_in_thread(_refuse_enrolled, store, account)
    key = make_private_key()
    instance = str(uuid.uuid4())
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
        private_key=private_key_pem(key),
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
