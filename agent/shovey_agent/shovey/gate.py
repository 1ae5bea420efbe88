"""Whether a Shovey order may be acted on, and what the server is told when it may not.

The protocol has neither a nonce nor the node's name in what is signed, so an order that was ever valid is valid for
every node until its time is over. A node therefore remembers the runs it was given: each is started once, whatever is
sent again and however it is signed (schob runs it again). And since anybody on the gossip ring can send what looks like
an order, a refusal is told to the server only where it cannot overwrite the state of a run that this node has had.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from shovey_agent.desk.nonces import NonceFile, NonceVerdict
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.run.runs import RunSpec
from shovey_agent.supervisor.proc_posix import elapsed_clock
from shovey_trio.core.chef.signing import load_public_key
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.whitelist.whitelist import NotWhitelisted
from shovey_trio.identity.files import read_public
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.shovey.protocol.report import PutStatus, RunPut
from shovey_trio.shovey.protocol.wire import Action, PayloadMalformed, ShoveyOrder, parse_order, verify_order

_log = structlog.get_logger(__name__)

#: How long a run is remembered after its order was made. Orders are good for a quarter of an hour by default.
MEMORY: Final = 7200.0
# Between SIGTERM and SIGKILL: the protocol does not say (schob sends one SIGINT and forgets).
_KILL_GRACE: Final = 10.0
# Refused run ids, so that one is not reported over and over; some 100 bytes each.
_REFUSALS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An order is not acted on. ``put`` is what the server is told; None for nothing."""

    run_id: str
    put: RunPut | None


class LegacyGate:
    """Judges orders for one node.

    Args:
        node: this node's client name.
        public_key: PEM of the key that orders are signed with; read anew for each order, so that it can be replaced.
        whitelist: what may run.
        runs: ids of the runs that this node was given.
        time_slew: seconds that an order's time may be off this node's clock.
    """

    def __init__(
        self, *, node: str, public_key: Path, whitelist: WhitelistFile, runs: NonceFile, time_slew: float
    ) -> None:
        self._node = node
        self._public_key = public_key
        self._whitelist = whitelist
        self._runs = runs
        self._time_slew = time_slew
        self._refused: OrderedDict[str, None] = OrderedDict()

    async def believe(self, payload: bytes, *, now: float) -> ShoveyOrder | Refusal | None:
        """The order, if its signature holds and it is of now; None for what is no order at all."""
        try:
            order = parse_order(payload)
        except PayloadMalformed as error:
            _log.warning("order.malformed", error=str(error))
            return None
        key = await run_in_thread(_read_key, self._public_key)
        if key is None or not verify_order(order, key):
            why = "could not be verified! crypto/rsa: verification error"
            return self._refuse(order, "bad_signature", why)
        if order.issued_at > now + self._time_slew:
            return self._refuse(order, "future_dated", f"is from the future: {order.time}")
        if order.issued_at < now - self._time_slew:
            # It may be a copy of an order that was carried out long ago.
            _log.warning("order.refused", reason="expired", run_id=order.run_id, time=order.time)
            return Refusal(run_id=order.run_id, put=None)
        return order

    async def admit(self, order: ShoveyOrder, payload: bytes, *, now: float) -> RunSpec | Refusal:
        """What to run for a believed start order of a run that this node does not have. Uses the run's id up, durably.

        Cancelled, the id may be used up: the order will be refused as replayed when it comes again.

        Raises:
            OSError: it could not be made durable; the order must not run.
        """
        if not await self.use_up(order, now=now):
            _log.warning("order.refused", reason="replayed", run_id=order.run_id)
            return Refusal(run_id=order.run_id, put=None)
        try:
            entry = (await run_in_thread(self._whitelist.current)).resolve(order.command)
        except NotWhitelisted:
            error = f"command {order.command} not in whitelist"
            _log.warning("order.refused", reason="not_whitelisted", run_id=order.run_id, command=order.command[:200])
            return Refusal(run_id=order.run_id, put=RunPut(status=PutStatus.NACKED, error=error))
        asked = float(order.timeout or 1)
        timeout = asked if entry.timeout is None else min(asked, entry.timeout)
        return RunSpec(
            run_id=order.run_id,
            job_id=order.run_id,
            node=self._node,
            command=order.command,
            argv=entry.argv,
            cwd=entry.cwd or "/",
            env=entry.env,
            timeout=timeout,
            ends_by=elapsed_clock() + timeout,
            grace=_KILL_GRACE,
            order=payload,
        )

    async def use_up(self, order: ShoveyOrder, *, now: float) -> bool:
        """Makes sure, durably, that the run can never start here again; False when this node has had it.

        Raises:
            OSError: it could not be made durable.
        """
        verdict = await self._runs.admit(order.run_id.encode(), expires_at=order.issued_at + MEMORY, now=now)
        return verdict is NonceVerdict.FRESH

    def _refuse(self, order: ShoveyOrder, reason: str, why: str) -> Refusal:
        told = order.run_id in self._refused or self._runs.holds(order.run_id.encode())
        _log.warning("order.refused", reason=reason, run_id=order.run_id[:100], told=not told)
        if told or order.action is not Action.START:
            return Refusal(run_id=order.run_id, put=None)
        self._refused[order.run_id] = None
        while len(self._refused) > _REFUSALS:
            self._refused.popitem(last=False)
        error = f"Command id {order.run_id} running '{order.command}' {why}"
        return Refusal(run_id=order.run_id, put=RunPut(status=PutStatus.INVALID, error=error))


def _read_key(path: Path) -> RSAPublicKey | None:
    try:
        return load_public_key(read_public(path).decode())
    except (ShoveyError, UnicodeDecodeError) as error:
        _log.error("signing_key.unusable", path=str(path), error=str(error))
        return None
