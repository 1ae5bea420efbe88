"""The gate: whether an order may be acted on. Nothing gets past it that is not signed, ours, fresh and whitelisted.

The order of the checks is the order of trust: signature over the received bytes, then what they say (organization,
node, instance, kind, epoch, expiry), then this node's own disk (nonce, void runs), then the whitelist.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from shovey_agent.epoch import EpochFile
from shovey_agent.nonces import NonceFile, NonceVerdict
from shovey_agent.runs import RunSpec
from shovey_agent.whitelist_file import WhitelistFile
from shovey_trio.core.order_signing import KeySet, verify_order
from shovey_trio.core.orders import NodeIdentity, Order, OrderKind, RefusalReason, SignedOrder, judge_order
from shovey_trio.core.whitelist import NotWhitelisted
from shovey_trio.rpc.order_codec import parse_order

# A void run stays void for this much longer than the order that voided it, so that no start order of it outlives that.
VOID_LIFETIME = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an order is not acted on. ``order`` is None when its bytes could not be believed."""

    reason: RefusalReason
    detail: str = ""
    order: Order | None = None


class OrderGate:
    """Judges orders for one node."""

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        keys: Callable[[], KeySet],
        nonces: NonceFile,
        voided: NonceFile,
        epoch: EpochFile,
        whitelist: WhitelistFile,
    ) -> None:
        self._identity = identity
        self._keys = keys
        self._nonces = nonces
        self._voided = voided
        self._epoch = epoch
        self._whitelist = whitelist

    def believe(self, signed: SignedOrder, *, controller_now: float, skew: float = 0.0) -> Order | Refusal:
        """The order, if its signature holds and it is meant for this node now.

        Args:
            signed: as received.
            controller_now: the controller's time, as measured at attach.
            skew: how wrong that may be, in seconds.
        """
        if (reason := verify_order(signed, self._keys().by_id())) is not None:
            return Refusal(reason=reason)
        order = parse_order(signed.order)
        if isinstance(order, RefusalReason):
            return Refusal(reason=order)
        reason = judge_order(
            order,
            identity=self._identity,
            controller_now=controller_now,
            lowest_epoch=self._epoch.value,
            skew=skew,
        )
        return order if reason is None else Refusal(reason=reason, order=order)

    async def admit(self, order: Order, signed: SignedOrder, *, controller_now: float) -> RunSpec | Refusal:
        """What to run for a believed start order that this node does not know yet. Uses its nonce up, durably.

        Cancelled, the nonce may be used up: the order will be refused as replayed when it comes again.
        """
        try:
            entry = (await trio.to_thread.run_sync(self._whitelist.current)).resolve(order.command)
        except NotWhitelisted as error:
            return Refusal(reason=RefusalReason.NOT_WHITELISTED, detail=error.message, order=order)
        if self._voided.holds(order.run_id.encode()):
            return Refusal(reason=RefusalReason.REPLAYED, detail="the run was cancelled before", order=order)
        await self._epoch.raise_to(order.epoch)
        verdict = await self._nonces.admit(order.nonce, expires_at=order.expires_at, now=controller_now)
        if verdict is not NonceVerdict.FRESH:
            reason = RefusalReason.EXPIRED if verdict is NonceVerdict.BELOW_FLOOR else RefusalReason.REPLAYED
            return Refusal(reason=reason, detail=verdict.value, order=order)
        timeout = order.run_timeout if entry.timeout is None else min(order.run_timeout, entry.timeout)
        return RunSpec(
            run_id=order.run_id,
            job_id=order.job_id,
            node=order.node,
            command=order.command,
            argv=entry.argv,
            cwd=entry.cwd or "/",
            env=entry.env,
            timeout=timeout,
            deadline_at=time.time() + timeout,
            grace=order.kill_grace,
            order=signed.order,
            signature=signed.signature,
        )

    async def void(self, order: Order, *, controller_now: float) -> None:
        """Makes sure, durably, that the run of a believed cancel order can never start here."""
        assert order.kind is OrderKind.CANCEL
        await self._voided.admit(order.run_id.encode(), expires_at=order.expires_at + VOID_LIFETIME, now=controller_now)
