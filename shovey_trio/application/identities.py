"""Users, certificates, enrolment and renewal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import structlog
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_trio.application.audit import Actor
from shovey_trio.application.credentials import EnrollmentToken, open_enrollment
from shovey_trio.application.members import certify_user
from shovey_trio.application.organization_keys import OrganizationKeys
from shovey_trio.application.removal import remove_user
from shovey_trio.core.audit.records import AuditAction, AuditEntry
from shovey_trio.core.errors import InvalidEnrollmentToken, InvalidRequest, Unauthenticated
from shovey_trio.core.jobs.model import LinkMode, Node, Presence, Principal, Role, User
from shovey_trio.core.trust.enrollment import SECRET_BYTES, token_digest
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.identity.authority import CertificateAuthority, IssuedCertificate, read_certificates
from shovey_trio.identity.names import Identity, PrincipalKind, node_identity, user_identity
from shovey_trio.identity.renewal import verify_renewal
from shovey_trio.identity.requests import read_request
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.services import Services
from shovey_trio.store.contract import Store

_log = structlog.get_logger(__name__)
_MAX_INSTANCE = 64
# A change of a clock, in seconds, that is worth a write.
_SKEW_STEP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What a new node gets."""

    certificate: IssuedCertificate
    ca_certificates: bytes
    keys: PublishedKeys


class Identities:
    """Who may call, and how one becomes somebody who may."""

    def __init__(
        self,
        *,
        store: Store,
        services: Services,
        registry: NodeRegistry,
        authority: CertificateAuthority,
        ca_certificates: bytes,
        keys: OrganizationKeys,
    ) -> None:
        self._store = store
        self._services = services
        self._registry = registry
        self._keys = keys
        self._users: dict[tuple[str, str], User] = {}
        self._revoked: set[str] = set()
        # Void since ``serve_revocations`` last told, and its wake-up.
        self._news: set[str] = set()
        self._fresh = trio.Event()
        self.replace_authority(authority, ca_certificates)

    def replace_authority(self, authority: CertificateAuthority, ca_certificates: bytes) -> None:
        """Issues with ``authority`` from now on, and believes the CAs in ``ca_certificates`` (PEM), which it gives out.

        Raises:
            CertificateUnreadable: ``ca_certificates`` does not parse; nothing has changed.
        """
        self._trusted = read_certificates(ca_certificates)
        self._authority = authority
        self._ca_certificates = ca_certificates

    async def serve_revocations(self, end_calls: Callable[[Collection[str]], None]) -> None:
        """Tells ``end_calls`` the serials of certificates as they become void, until cancelled.

        New calls with them are refused from the same moment on, whether or not this runs.
        """
        while True:
            await self._fresh.wait()
            self._fresh = trio.Event()
            serials, self._news = self._news, set()
            end_calls(serials)

    async def load(self) -> None:
        """Reads users and revocations; at start, and when an offline command may have changed them."""
        users = await self._store.load_users()
        self._users = {(user.organization, user.name): user for user in users}
        self._void(await self._store.revoked_serials())

    @property
    def ca_certificates(self) -> bytes:
        """PEM, what clients and nodes must trust."""
        return self._ca_certificates

    def keys(self, organization: str) -> PublishedKeys:
        """The public keys that orders of an organization are signed with.

        Raises:
            NotFound: an organization this controller does not serve.
        """
        return self._keys.published(organization)

    async def principal(self, identity: Identity, serial: str) -> Principal:
        """Who holds a verified certificate, with the role that holds right now.

        Raises:
            Unauthenticated: the certificate is revoked, or the user or node is not (or no longer) known.
        """
        if serial in self._revoked:
            raise Unauthenticated(f"the certificate of {identity.label} is revoked")
        if identity.kind is PrincipalKind.NODE:
            if self._registry.get(identity.organization, identity.name) is None:
                raise Unauthenticated(f"there is no {identity.label} in {identity.organization}")
            return Principal(organization=identity.organization, role=Role.NODE, name=identity.name)
        user = self._users.get((identity.organization, identity.name))
        if user is None:
            await self.load()  # made by an offline command since
            user = self._users.get((identity.organization, identity.name))
        if user is None or serial in self._revoked:
            raise Unauthenticated(f"there is no {identity.label} in {identity.organization}")
        return Principal(organization=identity.organization, role=user.role, name=identity.name)

    # -- nodes

    async def create_enrollment_token(
        self, principal: Principal, node: str, valid_for: float | None
    ) -> EnrollmentToken:
        """See ``open_enrollment``."""
        secret = self._services.random_bytes(SECRET_BYTES)
        actor = Actor.of(principal, self._services.clock.now())
        return await open_enrollment(self._store, actor, node, secret=secret, valid_for=valid_for)

    async def enroll(self, *, token: str, organization: str, node: str, csr: bytes, agent_instance: str) -> Enrolled:
        """Makes a node of whoever holds its token.

        A name that was enrolled before becomes a new instance: its old certificates are void, its stream is cut. The
        same instance with the same key may come again, as one whose answer was lost does, and gets a certificate anew.

        Raises:
            InvalidCertificateRequest: the request is bad; the token is not used up by it.
            InvalidEnrollmentToken: unknown, expired, another node's, or used by another instance or key.
        """
        identity = node_identity(organization, node)
        if not 0 < len(agent_instance) <= _MAX_INSTANCE or not agent_instance.replace("-", "").isalnum():
            raise InvalidRequest("agent_instance must be 1 to 64 letters and digits", field="agent_instance")
        key = hashlib.sha256(
            read_request(csr).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest()
        now = self._services.clock.now()
        used = await self._store.use_enrollment_token(
            digest=token_digest(token),
            organization=organization,
            node=node,
            now=now,
            holder=f"{agent_instance} {key}",
            audit=_by_itself(identity, now).entry(
                AuditAction.NODE_ENROLLED,
                identity.label,
                rule="a one-time token",
                agent_instance=agent_instance,
                key=key,
            ),
        )
        if not used:
            _log.warning("enrollment.refused", organization=organization, node=node)
            raise InvalidEnrollmentToken("the enrolment token is not valid")
        self._void(await self._store.revoke_certificates(organization, identity.label))
        certificate = await self._issue(identity, csr, now)
        link = self._services.links.get(organization, node)
        if link is not None:
            link.close("the node was enrolled anew")
        known = self._registry.get(organization, node)
        await self._registry.put(
            Node(
                name=node,
                organization=organization,
                agent_instance=agent_instance,
                link=known.link if known else LinkMode.ATTACHED,
                tags=known.tags if known else {},
                enrolled_at=now,
                presence=known.presence if known else Presence.NEW,
                presence_since=known.presence_since if known else now,
                presence_reason=known.presence_reason if known else "enrolled",
            )
        )
        _log.info("node.enrolled", organization=organization, node=node)
        return Enrolled(certificate=certificate, ca_certificates=self.ca_certificates, keys=self.keys(organization))

    async def renew(
        self, *, certificate: bytes, csr: bytes, proof: bytes, admit: Callable[[str], None]
    ) -> IssuedCertificate:
        """A fresh certificate for the holder of an old one, up to 90 days after its end.

        Args:
            admit: called with who it is as soon as that is proven; raises to refuse, and nothing was done.

        Raises:
            Unauthenticated: the certificate or the proof does not hold, or its holder is not known any more.
            InvalidCertificateRequest: the request is bad.
        """
        now = self._services.clock.now()
        verified = verify_renewal(
            certificate=certificate,
            csr=csr,
            proof=proof,
            authorities=self._trusted,
            revoked=self._revoked,
            now=now,
        )
        await self.principal(verified.identity, verified.serial)
        admit(f"{verified.identity.organization}/{verified.identity.label}")
        renewed = _by_itself(verified.identity, now).entry(
            AuditAction.CERTIFICATE_RENEWED,
            verified.identity.label,
            rule="the key of a certificate that is not revoked",
            replaces=verified.serial,
        )
        return await self._issue(verified.identity, csr, now, renewed, renews=verified.serial)

    async def note_agent(
        self, node: Node, *, link: str, tags: dict[str, str], version: str, clock_skew: float | None
    ) -> None:
        """Keeps what an agent says of itself when it attaches, and what was measured of its clock, if that was."""
        noted = replace(
            node, link=link, tags=tags, agent_version=version, clock_skew=_noted_skew(node.clock_skew, clock_skew)
        )
        if noted != node:
            await self._registry.put(noted, only_known=True)

    # -- users

    async def create_user_certificate(
        self, principal: Principal, *, name: str, role: Role, csr: bytes
    ) -> tuple[User, IssuedCertificate]:
        """A certificate for a user, who is made, or given this role, by it.

        Raises:
            InvalidRequest: the name is not permitted.
            InvalidCertificateRequest: the request is bad; nothing was changed.
        """
        now = self._services.clock.now()
        identity = user_identity(principal.organization, name)
        issued = self._authority.issue_client(csr=csr, identity=identity, now=now)
        user, _ = await certify_user(self._store, Actor.of(principal, now), name, role, issued)
        self._users[user.organization, user.name] = user
        return user, issued

    async def list_users(self, principal: Principal) -> Sequence[User]:
        """All users of the organization, by name."""
        await self.load()
        users = (user for user in self._users.values() if user.organization == principal.organization)
        return sorted(users, key=lambda user: user.name)

    async def remove_user(self, principal: Principal, name: str) -> None:
        """See ``removal.remove_user``."""
        await remove_user(self._store, Actor.of(principal, self._services.clock.now()), name)
        await self.load()

    def _void(self, serials: Collection[str]) -> None:
        """No certificate that was void becomes valid again, so what is known is only added to."""
        fresh = set(serials) - self._revoked
        self._revoked |= fresh
        if fresh:
            self._news |= fresh
            self._fresh.set()

    async def _issue(
        self, identity: Identity, csr: bytes, now: float, audit: AuditEntry | None = None, *, renews: str = ""
    ) -> IssuedCertificate:
        issued = self._authority.issue_client(csr=csr, identity=identity, now=now)
        written = await self._store.write_certificate(
            serial=issued.serial,
            organization=identity.organization,
            subject=identity.label,
            expires_at=issued.expires_at,
            renews=renews,
            audit=audit,
        )
        if not written:
            # Revoked meanwhile, or beside this daemon. What was issued is recorded nowhere, and goes nowhere.
            raise Unauthenticated(f"the certificate of {identity.label} is revoked", cause="revoked")
        return issued


def _by_itself(identity: Identity, now: float) -> Actor:
    return Actor(organization=identity.organization, label=identity.label, at=now)


def _noted_skew(noted: float | None, measured: float | None) -> float | None:
    """Not every few milliseconds count: a write per attach would be a heartbeat."""
    if measured is None or (noted is not None and abs(noted - measured) <= _SKEW_STEP):
        return noted
    return measured
