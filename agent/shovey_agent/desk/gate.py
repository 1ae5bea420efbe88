"""The gate: whether an order may be acted on. Nothing gets past it that is not signed, ours, fresh and whitelisted.

The order of the checks is the order of trust: signature over the received bytes, then what they say (organization,
node, instance, kind, epoch, expiry), then this node's own disk (nonce, void runs), then the whitelist.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, replace

from shovey_agent.desk.epoch import JobEpochs
from shovey_agent.desk.nonces import NonceFile, NonceVerdict
from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_agent.run.accounts import Account, AccountUnusable, resolve_account
from shovey_agent.run.runs import RunSpec
from shovey_agent.supervisor.proc_posix import elapsed_clock
from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.trust.order_signing import OrderKeys, verify_order
from shovey_trio.core.trust.orders import NodeIdentity, Order, OrderKind, RefusalReason, SignedOrder, judge_order
from shovey_trio.core.whitelist.entry import Entry
from shovey_trio.core.whitelist.permit import InputRefused, Permit, permit
from shovey_trio.core.whitelist.whitelist import NotWhitelisted
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.rpc.order_codec import parse_order

# A void run stays void for this much longer than the order that voided it, so that no start order of it outlives that.
VOID_LIFETIME = 3600.0


_OF_TIME = frozenset({RefusalReason.EXPIRED, RefusalReason.FUTURE_DATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an order is not acted on. ``order`` is None when its bytes could not be believed."""

    reason: RefusalReason
    detail: str = ""
    order: Order | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """A command that the whitelist permits, with what it was given, as an account that this agent can be."""

    entry: Entry
    permit: Permit
    account: Account | None

    @property
    def account_name(self) -> str:
        """Who the command runs as, to be shown."""
        return "the agent's own account" if self.account is None else self.account.name


class OrderGate:
    """Judges orders for one node."""

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        keys: OrderKeys,
        nonces: NonceFile,
        voided: NonceFile,
        epochs: JobEpochs,
        whitelist: WhitelistFile,
    ) -> None:
        self._identity = identity
        self._keys = keys
        self._nonces = nonces
        self._voided = voided
        self._epochs = epochs
        self._whitelist = whitelist

    def believe(self, signed: SignedOrder, *, controller_now: float, skew: float = 0.0) -> Order | Refusal:
        """The order, if its signature holds and it is meant for this node now.

        Args:
            signed: as received.
            controller_now: the controller's time, as measured at attach.
            skew: how wrong that may be, in seconds.
        """
        if (reason := verify_order(signed, self._keys, controller_now)) is not None:
            return Refusal(reason=reason)
        order = parse_order(signed.order, signed.sealed)
        if isinstance(order, RefusalReason):
            return Refusal(reason=order)
        reason = judge_order(
            order,
            identity=self._identity,
            controller_now=controller_now,
            lowest_epoch=self._epochs.of(order.job_id),
            skew=skew,
        )
        if reason is None:
            if order.kind is OrderKind.CANCEL:
                self._epochs.raise_to(order.job_id, order.epoch)
            return order
        detail = _explain_time(order, controller_now) if reason in _OF_TIME else ""
        return Refusal(reason=reason, detail=detail, order=order)

    async def admit(self, order: Order, signed: SignedOrder, *, controller_now: float) -> RunSpec | Refusal:
        """What to run for a believed start order that this node does not know yet. Uses its nonce up, durably.

        Cancelled, the nonce may be used up: the order will be refused as replayed when it comes again.
        """
        cleared = await self.clear(order.command, order.input)
        if isinstance(cleared, Refusal):
            return replace(cleared, order=order)
        entry, permitted, account = cleared.entry, cleared.permit, cleared.account
        if self._voided.holds(order.run_id.encode()):
            return Refusal(reason=RefusalReason.REPLAYED, detail="the run was cancelled before", order=order)
        try:
            verdict = await self._nonces.admit(order.nonce, expires_at=order.expires_at, now=controller_now)
        except OSError as error:
            # What cannot be remembered must not run; it will not run later either, its nonce counts as used.
            return Refusal(reason=RefusalReason.SPOOL_FULL, detail=f"the nonce: {error.strerror}", order=order)
        if verdict is not NonceVerdict.FRESH:
            reason = RefusalReason.EXPIRED if verdict is NonceVerdict.BELOW_FLOOR else RefusalReason.REPLAYED
            return Refusal(reason=reason, detail=verdict.value, order=order)
        self._epochs.raise_to(order.job_id, order.epoch)
        timeout = order.run_timeout if entry.timeout is None else min(order.run_timeout, entry.timeout)
        return RunSpec(
            run_id=order.run_id,
            job_id=order.job_id,
            epoch=order.epoch,
            node=order.node,
            command=order.command,
            argv=permitted.argv,
            cwd=entry.cwd or "/",
            env=permitted.env,
            umask=0o022 if entry.umask is None else entry.umask,
            timeout=timeout,
            ends_by=elapsed_clock() + timeout,
            grace=order.kill_grace,
            order=signed.order,
            signature=signed.signature,
            account=account,
            nice=entry.nice,
            limits=entry.limits,
            stdin=permitted.stdin,
            secrets=order.input.secrets,
            lock=entry.lock,
            concurrency=entry.concurrency,
            output_cap=entry.output_cap,
        )

    async def clear(self, command: str, given: CommandInput) -> Cleared | Refusal:
        """What would run for a command with this input, or why nothing; nothing is used up by asking."""
        return await run_in_thread(self._clear, command, given)

    def _clear(self, command: str, given: CommandInput) -> Cleared | Refusal:
        try:
            entry = self._whitelist.current().resolve(command)
            permitted = permit(entry, given)
            account = resolve_account(permitted.user, entry.group)
        except NotWhitelisted as error:
            return Refusal(reason=RefusalReason.NOT_WHITELISTED, detail=error.message)
        except InputRefused as error:
            return Refusal(reason=error.refusal, detail=error.detail)
        except AccountUnusable as error:
            return Refusal(reason=RefusalReason.USER_NOT_PERMITTED, detail=str(error))
        return Cleared(entry=entry, permit=permitted, account=account)

    async def void(self, order: Order, *, controller_now: float) -> None:
        """Makes sure, durably, that the run of a believed cancel order can never start here.

        Raises:
            OSError: that cannot be made sure, and must not be said: the ledger is damaged or the disk is full.
        """
        assert order.kind is OrderKind.CANCEL
        expires_at = order.expires_at + VOID_LIFETIME
        verdict = await self._voided.admit(order.run_id.encode(), expires_at=expires_at, now=controller_now)
        if verdict not in (NonceVerdict.FRESH, NonceVerdict.REPLAYED):
            raise OSError(errno.EIO, f"the ledger of void runs does not take it: {verdict.value}")


def _explain_time(order: Order, controller_now: float) -> str:
    """Says by which clock an order was judged and how far this node's own is off it: one of them is to be set."""
    return (
        f"by the controller's clock it is {controller_now - order.issued_at:+.1f} s from its issue and"
        f" {controller_now - order.expires_at:+.1f} s from its expiry;"
        f" this node's clock is {time.time() - controller_now:+.1f} s off that one"
    )
