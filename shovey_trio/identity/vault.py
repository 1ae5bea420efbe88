"""A client of HashiCorp Vault, or of OpenBao, which speaks the same: KV version 2, token and AppRole.

Every method blocks, for at most the configured timeout per question, and is called from worker threads. The token is
renewed on the way when two thirds of its life are over; AppRole logs in again where renewing is not enough. Nothing of
what is read, and no token, is part of an error or a log line.

API: https://openbao.org/api-docs/secret/kv/kv-v2/, https://openbao.org/api-docs/auth/approle/,
https://openbao.org/api-docs/auth/token/.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import httpx2
import structlog

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.identity.key_places import VaultCredentials, VaultOptions

_log = structlog.get_logger(__name__)

# Bytes of an answer; a document of keys has some kilobytes.
_LARGEST_ANSWER: Final = 1024 * 1024
_RENEW_AFTER: Final = 2 / 3
# Seconds of a token's life, ten years: what says more says it without meaning it.
_LONGEST: Final = 10 * 366 * 86_400
_SEALED: Final = 503
_REFUSED_STATUSES: Final = (400, 403)


class VaultUnavailable(ShoveyError):
    """Vault does not answer, is sealed, or is not itself; trying again may help."""

    reason, code, http, exit = "VAULT_UNAVAILABLE", Code.UNAVAILABLE, 503, Exit.UNREACHABLE


class VaultRefused(ShoveyError):
    """Vault answers, and gives nothing: no permission, no such secret, or somebody else wrote first."""

    reason, code, http, exit = "VAULT_REFUSED", Code.FAILED_PRECONDITION, 500, Exit.DENIED


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultSecret:
    """A secret as of one version."""

    data: Mapping[str, Any] = field(repr=False)
    version: int


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    renew_at: float
    ends_at: float
    renewable: bool


class Vault:
    """A connection to Vault.

    Args:
        options: where it is.
        auth: who we are.
        now: monotonic seconds.
    """

    def __init__(
        self, options: VaultOptions, auth: VaultCredentials, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._auth = auth
        self._now = now
        self._token: _Token | None = None
        self._lock = threading.Lock()
        headers = {"X-Vault-Request": "true"}
        if options.namespace:
            headers["X-Vault-Namespace"] = options.namespace
        self._http = httpx2.Client(
            base_url=options.address.rstrip("/"),
            headers=headers,
            verify=ssl.create_default_context(cafile=options.ca_file or None),
            timeout=options.timeout,
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def read(self, path: str) -> VaultSecret:
        """The newest version of a secret.

        Raises:
            VaultUnavailable, VaultRefused: see there.
            InsecureFile, FileUnusable: the credentials cannot be read.
        """
        answer = self._ask_as_us("GET", f"/v1/{self._options.mount}/data/{quote(path)}", None, subject=path)
        try:
            inner = answer["data"]
            return VaultSecret(data=dict(inner["data"]), version=int(inner["metadata"]["version"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise VaultRefused(f"{self._name}: {path} is no secret of KV version 2") from None

    def write(self, path: str, data: Mapping[str, Any], *, after_version: int) -> int:
        """Writes a secret, if nobody has since that version (0: if there is none); returns the new version.

        Raises:
            As ``read``.
        """
        body = {"options": {"cas": after_version}, "data": dict(data)}
        answer = self._ask_as_us("POST", f"/v1/{self._options.mount}/data/{quote(path)}", body, subject=path)
        try:
            return int(answer["data"]["version"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise VaultUnavailable(f"{self._name}: an answer that is none of Vault's") from None

    # -- who we are

    def _ask_as_us(self, method: str, path: str, body: Mapping[str, Any] | None, *, subject: str) -> Mapping[str, Any]:
        with self._lock:
            token = self._fresh_token()
            status, answer = self._ask(method, path, body, token)
            if status == 403 and self._token is not None:
                # Revoked since, or it has ended earlier than was said: once, with a new one.
                self._token = None
                status, answer = self._ask(method, path, body, self._fresh_token())
        match status:
            case 200 | 204:
                return answer
            case 403:
                raise VaultRefused(f"{self._name}: no permission for {subject}")
            case 404:
                raise VaultRefused(f"{self._name}: there is no {subject}")
            case 400:
                raise VaultRefused(f"{self._name}: {subject} was written by somebody else, or is not of KV version 2")
            case _:
                raise VaultUnavailable(f"{self._name}: answered {status}")

    def _fresh_token(self) -> str:
        now = self._now()
        if self._token is not None and now >= self._token.renew_at:
            self._token = self._renewed(self._token)
        if self._token is None:
            self._token = self._login()
        return self._token.text

    def _renewed(self, token: _Token) -> _Token | None:
        """The token with more life, or the same while it lasts; None when it takes a login."""
        if not token.renewable:
            return None
        status, answer = self._ask("POST", "/v1/auth/token/renew-self", {}, token.text)
        if status == 200:
            renewed = _token(answer, self._now(), text=token.text)
            # Not longer than before: the maximum is reached, and a login (AppRole) is what is left.
            if renewed is not None and renewed.ends_at > token.ends_at:
                return renewed
        _log.info("vault.token_not_renewed", status=status)
        return None

    def _login(self) -> _Token:
        given = self._auth.credentials()
        if "token" in given:
            status, answer = self._ask("GET", "/v1/auth/token/lookup-self", None, given["token"])
            if status in _REFUSED_STATUSES:
                raise VaultRefused(f"{self._name}: the token is not valid, or not any more")
            token = _looked_up(answer, self._now(), given["token"]) if status == 200 else None
        else:
            path = f"/v1/auth/{self._options.approle_mount}/login"
            status, answer = self._ask("POST", path, given, None)
            if status in _REFUSED_STATUSES:
                raise VaultRefused(f"{self._name}: the role or its secret id is not valid")
            token = _token(answer, self._now()) if status == 200 else None
        if token is None:
            raise VaultUnavailable(f"{self._name}: the login was answered {status}")
        return token

    # -- the wire

    @property
    def _name(self) -> str:
        return f"Vault at {self._options.address}"

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, token: str | None
    ) -> tuple[int, Mapping[str, Any]]:
        """Status and answer.

        Raises:
            VaultUnavailable: there is none, or it is sealed.
        """
        headers = {} if token is None else {"X-Vault-Token": token}
        try:
            with self._http.stream(method, path, json=body, headers=headers) as answer:
                data = b""
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > _LARGEST_ANSWER:
                        raise VaultUnavailable(f"{self._name}: an answer that is too long")
                status = answer.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError) as error:
            # By its kind and not its text alone: a proxy's page could be quoted in it.
            raise VaultUnavailable(f"{self._name} cannot be reached ({_kind(error)})") from None
        if status == _SEALED:
            raise VaultUnavailable(f"{self._name} is sealed, or standing by")
        try:
            value = json.loads(data) if data else {}
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise VaultUnavailable(f"{self._name}: an answer that is none of Vault's ({status})")
        return status, value


def _token(answer: Mapping[str, Any], now: float, *, text: str = "") -> _Token | None:
    auth = answer.get("auth")
    if not isinstance(auth, Mapping):
        return None
    given, lasts = text or auth.get("client_token"), auth.get("lease_duration")
    if not isinstance(given, str) or not given or not isinstance(lasts, int):
        return None
    return _lasting(given, lasts, now, renewable=auth.get("renewable") is True)


def _looked_up(answer: Mapping[str, Any], now: float, text: str) -> _Token | None:
    data = answer.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("ttl"), int):
        return None
    return _lasting(text, data["ttl"], now, renewable=data.get("renewable") is True)


def _lasting(text: str, lasts: int, now: float, *, renewable: bool) -> _Token:
    """A life of 0 is one without an end."""
    lasts = min(max(lasts, 0), _LONGEST)
    renew_at = now + lasts * _RENEW_AFTER if lasts else float("inf")
    return _Token(text, renew_at, now + lasts if lasts else float("inf"), renewable)


def _kind(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate does not verify; see vault.ca_file"
    if "refused" in text.lower():
        return "connection refused"
    return type(error).__name__
