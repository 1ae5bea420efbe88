"""``shovey-agent doctor``: looks at this node's set-up without changing anything and says what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from shovey_agent.config import AgentSettings
from shovey_agent.credentials import Credentials, CredentialStore
from shovey_agent.desk.whitelist_file import open_whitelist
from shovey_agent.net.doorbells import foreign_name
from shovey_trio.core.addresses import split_address
from shovey_trio.core.errors import ShoveyError, words_of
from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.identity.files import read_secret
from shovey_trio.serf.connection import open_connection

# For the serf agent beside this one to answer.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look found; ``advice`` says what to do where it is not well."""

    check: str
    is_well: bool
    message: str
    advice: str = ""


async def diagnose(settings: AgentSettings) -> list[Finding]:
    """Everything that is found, in the order in which it matters. Takes some 5 s at most."""
    try:
        credentials = CredentialStore(settings.agent.state_dir).load()
    except (ShoveyError, OSError) as error:
        advice = "enrol this node: shovey-trio node token NAME on the controller's host prints the command"
        return [Finding(check="credentials", is_well=False, message=words_of(error), advice=advice)]
    findings = [*_of_certificate(credentials), *_of_whitelist(settings)]
    if settings.serf.enabled:
        findings.append(await _of_serf(settings, credentials))
    elif settings.agent.link is LinkMode.ON_DEMAND:
        advice = "set serf.enabled, or agent.link to attached"
        message = "on demand without serf: nothing wakes this agent"
        findings.append(Finding(check="serf", is_well=False, message=message, advice=advice))
    return findings


def _of_certificate(credentials: Credentials) -> Iterator[Finding]:
    left = credentials.expires_at - time.time()
    message = f"{credentials.organization}:{credentials.node}, good for another {left / 86_400:.0f} days"
    if left > 0:
        yield Finding(check="certificate", is_well=True, message=message)
    else:
        message = f"the certificate of {credentials.organization}:{credentials.node} has expired"
        advice = "a running agent renews it up to 90 days late; after that, enrol again"
        yield Finding(check="certificate", is_well=False, message=message, advice=advice)


def _of_whitelist(settings: AgentSettings) -> Iterator[Finding]:
    if settings.launcher.socket:
        return  # the launcher's, and root's to read
    path = Path(settings.agent.whitelist)
    try:
        entries = open_whitelist(path).current().entries
    except (ShoveyError, OSError) as error:
        advice = f"shovey-agent whitelist check {path}"
        yield Finding(check="whitelist", is_well=False, message=words_of(error), advice=advice)
    else:
        yield Finding(check="whitelist", is_well=True, message=f"{len(entries)} commands in {path}")


async def _of_serf(settings: AgentSettings, credentials: Credentials) -> Finding:
    address, key_file = settings.serf.address, settings.serf.auth_key_file
    advice = "start the serf agent, or correct serf.address and serf.auth_key_file"
    try:
        auth_key = read_secret(Path(key_file)).decode().strip() if key_file else None
        with trio.fail_after(_PATIENCE):
            stream = await trio.open_tcp_stream(*split_address(address))
            async with open_connection(stream, auth_key=auth_key) as connection:
                name = (await connection.stats()).get("agent", {}).get("name", "")
    except trio.TooSlowError:
        return Finding(check="serf", is_well=False, message=f"{address} does not answer", advice=advice)
    except (ShoveyError, OSError) as error:
        return Finding(check="serf", is_well=False, message=f"{address}: {words_of(error)}", advice=advice)
    wrong = foreign_name(name, organization=credentials.organization, node=credentials.node)
    return Finding(check="serf", is_well=not wrong, message=wrong or f"the agent {name}", advice=wrong and _RENAME)


_RENAME = "start serf with -node of that name, or set node_name in its configuration"
