"""Signed requests of Chef clients: knife, schob, and whoever else has a Chef key.

The rules of this file (mixlib-authentication as it is spoken; vectors in ``tests/golden/chef-signing-vectors.json``):

* A signature covers the method, the path, a hash of the body, the time and the user; never the query string.
* The path is the one on the wire: not percent-decoded, ``..`` not resolved. Only repeated slashes are one, and a last
  slash is none.
* 1.0 and 1.1 are RSA PKCS#1 v1.5 type-1 padding over the text itself, without DigestInfo. 1.2 and 1.3 are ordinary
  RSASSA-PKCS1-v1_5 with SHA-1 and SHA-256.
* Nothing here looks a key up: first ``read_signature`` (who claims to call, everything that can be checked without a
  key), then the caller finds the key, then ``verify_signature``.

There is no nonce in the protocol. A repeat within the permitted skew is as good as the first; what must not happen
twice is made idempotent by whoever does it, by ``signed_content``. The bytes of the signature are no help there: one of
1.0 or 1.1 that begins with a zero byte verifies without that byte as well.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from shovey_trio.core.errors import Code, Exit, InvalidRequest, ShoveyError
from shovey_trio.core.trust.x509_errors import UNREADABLE

# Characters per X-Ops-Authorization line: mixlib's.
_LINE: Final = 60
_MIN_KEY_BITS: Final = 1024
_SLASHES: Final = re.compile(r"/{2,}")
_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)


class SignatureMalformed(ShoveyError):
    """A header of the signature is missing, or asks for a protocol that does not exist."""

    reason, code, http, exit = "SIGNATURE_MALFORMED", Code.INVALID_ARGUMENT, 400, Exit.USAGE


class SignatureRefused(ShoveyError):
    """The request is not proven to be its user's: unknown user, wrong key, wrong body, wrong time."""

    reason, code, http, exit = "SIGNATURE_REFUSED", Code.UNAUTHENTICATED, 401, Exit.DENIED
    BAD_CLOCK: ClassVar[str] = "Authentication failed. Please check your system's clock."
    BAD_BODY: ClassVar[str] = "Content hash did not match hash of request body"

    @classmethod
    def unknown_user(cls, user: str) -> SignatureRefused:
        """Nobody of this name has a key here."""
        return cls(f"Failed to authenticate as '{user}'. Ensure that your node_name and client key are correct.")


class SigningVersion(StrEnum):
    """The versions of the signing protocol."""

    V1_0 = "1.0"
    V1_1 = "1.1"
    V1_2 = "1.2"
    V1_3 = "1.3"

    @property
    def algorithm(self) -> str:
        """The hash that the version is bound to, as ``X-Ops-Sign`` spells it."""
        return "sha256" if self is SigningVersion.V1_3 else "sha1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChefSignature:
    """A request's signature, read but not verified.

    Attributes:
        user: who claims to call.
        timestamp: as written; it is what was signed.
        signed_at: the same in unix seconds.
        content_hash: as written; ``read_signature`` has compared it with the body.
    """

    version: SigningVersion
    user: str
    timestamp: str
    signed_at: float
    content_hash: str
    server_api_version: str
    signature: bytes


def read_signature(headers: Mapping[str, str], body: bytes, *, now: float, clock_skew: float) -> ChefSignature:
    """The signature of a request, with everything checked that needs no key.

    Args:
        headers: by lower-case name.
        clock_skew: how far, in seconds, the client's clock may be from ``now``, either way.

    Raises:
        SignatureMalformed: a header is missing or makes no sense.
        SignatureRefused: no user, a time too far off, or another body than was signed.
    """
    content_hash = headers.get("x-ops-content-hash", "")
    if not content_hash:
        raise SignatureMalformed("no content hash provided")
    timestamp = headers.get("x-ops-timestamp", "")
    if not timestamp:
        raise SignatureMalformed("no timestamp header provided")
    version = _read_version(headers.get("x-ops-sign", ""))
    user = headers.get("x-ops-userid", "")
    if not user:
        raise SignatureRefused.unknown_user("")
    signed_at = _read_timestamp(timestamp)
    if abs(now - signed_at) > clock_skew:
        raise SignatureRefused(SignatureRefused.BAD_CLOCK)
    if not hmac.compare_digest(content_hash.encode(), _hash(body, version).encode()):
        raise SignatureRefused(SignatureRefused.BAD_BODY)
    if headers.get("x-ops-request-source", "").lower() == "web":
        # On behalf of a user, signed with the key of a web interface: there is none here.
        raise _bad_signature(version)
    return ChefSignature(
        version=version,
        user=user,
        timestamp=timestamp,
        signed_at=signed_at,
        content_hash=content_hash,
        server_api_version=headers.get("x-ops-server-api-version", "0"),
        signature=_read_authorization(headers, version),
    )


def verify_signature(signature: ChefSignature, *, method: str, path: str, key: RSAPublicKey) -> None:
    """Checks that the holder of ``key`` signed this request.

    Args:
        path: the request target as it was on the wire; a query string is ignored.

    Raises:
        SignatureRefused: they did not.
    """
    text = signed_content(signature, method=method, path=path)
    try:
        match signature.version:
            case SigningVersion.V1_0 | SigningVersion.V1_1:
                recovered = key.recover_data_from_signature(signature.signature, PKCS1v15(), NoDigestInfo())
                if not hmac.compare_digest(recovered, text):
                    raise _bad_signature(signature.version)
            case SigningVersion.V1_2:
                key.verify(signature.signature, text, PKCS1v15(), hashes.SHA1())  # noqa: S303 - the protocol's
            case SigningVersion.V1_3:
                key.verify(signature.signature, text, PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        raise _bad_signature(signature.version) from None


def signed_content(signature: ChefSignature, *, method: str, path: str) -> bytes:
    """What was signed. Two requests are the same request exactly when this is the same.

    Args:
        path: the request target as it was on the wire; a query string is ignored.
    """
    return canonical_request(
        version=signature.version,
        method=method,
        path=path,
        content_hash=signature.content_hash,
        timestamp=signature.timestamp,
        user=signature.user,
        server_api_version=signature.server_api_version,
    ).encode()


def sign_request(
    *,
    method: str,
    path: str,
    body: bytes,
    user: str,
    now: float,
    key: RSAPrivateKey,
    version: SigningVersion = SigningVersion.V1_3,
    server_api_version: str = "1",
) -> dict[str, str]:
    """The headers that sign a request, in the order in which they are usually sent.

    Args:
        path: the request target as it will be on the wire; a query string is ignored.
        now: unix seconds; whole seconds are signed.

    Raises:
        InvalidRequest: 1.0 with a user name so long that the text does not fit the key (1.1 hashes it).
    """
    timestamp = datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content_hash = _hash(body, version)
    text = canonical_request(
        version=version,
        method=method,
        path=path,
        content_hash=content_hash,
        timestamp=timestamp,
        user=user,
        server_api_version=server_api_version,
    ).encode()
    match version:
        case SigningVersion.V1_0 | SigningVersion.V1_1:
            if len(text) > key.key_size // 8 - 11:
                raise InvalidRequest("the signed text is too long for this key; use protocol 1.1 or 1.3", field="user")
            raw = key.sign(text, PKCS1v15(), NoDigestInfo())
        case SigningVersion.V1_2:
            raw = key.sign(text, PKCS1v15(), hashes.SHA1())  # noqa: S303 - the protocol's
        case SigningVersion.V1_3:
            raw = key.sign(text, PKCS1v15(), hashes.SHA256())
    encoded = base64.b64encode(raw).decode()
    headers = {
        "X-Ops-Sign": f"algorithm={version.algorithm};version={version};",
        "X-Ops-Userid": user,
        "X-Ops-Timestamp": timestamp,
        "X-Ops-Content-Hash": content_hash,
    }
    if version is SigningVersion.V1_3:
        headers["X-Ops-Server-Api-Version"] = server_api_version
    lines = (encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE))
    return headers | {f"X-Ops-Authorization-{number}": line for number, line in enumerate(lines, start=1)}


def canonical_request(
    *,
    version: SigningVersion,
    method: str,
    path: str,
    content_hash: str,
    timestamp: str,
    user: str,
    server_api_version: str,
) -> str:
    """The text that is signed."""
    path = canonical_path(path)
    if version is SigningVersion.V1_3:
        return (
            f"Method:{method.upper()}\nPath:{path}\nX-Ops-Content-Hash:{content_hash}\nX-Ops-Sign:version=1.3\n"
            f"X-Ops-Timestamp:{timestamp}\nX-Ops-UserId:{user}\nX-Ops-Server-API-Version:{server_api_version}"
        )
    signer = user if version is SigningVersion.V1_0 else _hash(user.encode(), version)
    return (
        f"Method:{method.upper()}\nHashed Path:{_hash(path.encode(), version)}\nX-Ops-Content-Hash:{content_hash}\n"
        f"X-Ops-Timestamp:{timestamp}\nX-Ops-UserId:{signer}"
    )


def canonical_path(target: str) -> str:
    """The signed form of a request target: no query, one slash at a time, none at the end; nothing decoded."""
    path = _SLASHES.sub("/", target.partition("?")[0])
    return path if path == "/" else path.removesuffix("/")


def load_public_key(pem: str) -> RSAPublicKey:
    """The RSA key of a PEM: a public key (PKCS#1 or SubjectPublicKeyInfo) or a certificate, as Chef servers hand out.

    Raises:
        InvalidRequest: it is none of these, or another kind of key, or shorter than 1,024 bits.
    """
    data = pem.strip().encode()
    try:
        certificate = b"-----BEGIN CERTIFICATE-----" in data
        key = load_pem_x509_certificate(data).public_key() if certificate else load_pem_public_key(data)
    except UNREADABLE as error:
        raise InvalidRequest("this is not a public key in PEM form", field="public_key") from error
    if not isinstance(key, RSAPublicKey) or key.key_size < _MIN_KEY_BITS:
        raise InvalidRequest(f"the key must be RSA, at least {_MIN_KEY_BITS} bits", field="public_key")
    return key


def load_private_key(pem: str) -> RSAPrivateKey:
    """The RSA key of a PEM without passphrase, as knife and schob keep it.

    Raises:
        InvalidRequest: it is none, or another kind of key, or encrypted.
    """
    try:
        key = load_pem_private_key(pem.strip().encode(), password=None)
    except UNREADABLE as error:
        raise InvalidRequest("this is not an unencrypted private key in PEM form", field="private_key") from error
    if not isinstance(key, RSAPrivateKey):
        raise InvalidRequest("the key must be RSA", field="private_key")
    return key


@lru_cache(maxsize=64)
def _read_version(header: str) -> SigningVersion:
    """``algorithm=sha1;version=1.0``; the algorithm may be missing, and a last ``;`` is knife's."""
    if not header.strip():
        raise SignatureMalformed("missing X-Ops-Sign header")
    parts = dict(part.strip().partition("=")[::2] for part in header.split(";") if part.strip())
    number = parts.get("version", "")
    try:
        version = SigningVersion(number)
    except ValueError:
        raise SignatureMalformed(f"Bad version number '{number}' in X-Ops-Header") from None
    algorithm = parts.get("algorithm", version.algorithm)
    if algorithm != version.algorithm:
        raise SignatureMalformed(f"Unsupported hashing algorithm '{algorithm}' specified in X-Ops-Header")
    return version


def _read_timestamp(text: str) -> float:
    try:
        if _TIMESTAMP.fullmatch(text) is not None:
            return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        pass  # such as a 13th month
    raise SignatureRefused(f"the timestamp {text!r} is not of the form 2026-11-22T03:44:23Z")


def _read_authorization(headers: Mapping[str, str], version: SigningVersion) -> bytes:
    """The lines in the order of their numbers; a gap ends them, and the signature then does not hold."""
    parts: list[str] = []
    while (line := headers.get(f"x-ops-authorization-{len(parts) + 1}")) is not None:
        parts.append(line.strip())
    try:
        return base64.b64decode("".join(parts), validate=True)
    except ValueError:  # binascii.Error is one, and characters that are not ASCII are another
        raise _bad_signature(version) from None


def _hash(data: bytes, version: SigningVersion) -> str:
    return base64.b64encode(hashlib.new(version.algorithm, data).digest()).decode()


def _bad_signature(version: SigningVersion) -> SignatureRefused:
    """The texts that clients know; old ones tell the two apart by it."""
    if version in (SigningVersion.V1_0, SigningVersion.V1_1):
        return SignatureRefused("failed to verify authorization")
    return SignatureRefused("crypto/rsa: verification error")
