"""Whether a command would run on a node, and which rule decides; nothing is started by asking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from shovey_trio.application.identities import Identities
from shovey_trio.application.jobs import Jobs
from shovey_trio.core.errors import InvalidRequest, NotFound, PermissionDenied
from shovey_trio.core.jobs.command_input import NO_INPUT, CommandInput, input_problems
from shovey_trio.core.jobs.model import Node, Presence, Principal, Role
from shovey_trio.core.trust.authz import Action, may
from shovey_trio.core.trust.explain import ExplainRule, ExplainStep, Verdict
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.route import Routes
from shovey_trio.nursery.whitelist_asks import WhitelistAsks

# A node answers from memory; one that takes longer is as good as away.
_ANSWER = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRun:
    """The question. ``as_user`` is a user's name, or empty for the caller."""

    command: str
    node: str
    as_user: str = ""
    input: CommandInput = NO_INPUT


class Explain:
    """Asks every rule in turn, the node's whitelist last."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        identities: Identities,
        registry: NodeRegistry,
        links: Links,
        routes: Routes,
        asks: WhitelistAsks,
    ) -> None:
        self._jobs = jobs
        self._identities = identities
        self._registry = registry
        self._links = links
        self._routes = routes
        self._asks = asks

    async def explain(self, principal: Principal, question: ExplainRun) -> Sequence[ExplainStep]:
        """What each rule says, in order. A node that is attached is asked itself, for 5 s at most.

        Raises:
            PermissionDenied: the question is about another user and the caller is no admin.
            NotFound: there is no such user, or no such node.
            InvalidRequest: no node could be given that input.
        """
        for field, problem in input_problems(question.input):
            raise InvalidRequest(f"{field}: {problem}", field=field)
        asked_for = await self._principal(principal, question.as_user)
        node = self._registry.get(principal.organization, question.node)
        if node is None:
            raise NotFound(f"there is no node {question.node}", node=question.node)
        steps = [_role(asked_for)]
        grants = await self._jobs.grants.decide(asked_for, question.command, [question.node])
        verdict = Verdict.ALLOWED if grants.is_allowed else Verdict.REFUSED
        steps.append(ExplainStep(rule=ExplainRule.GRANT, verdict=verdict, detail=grants.rule))
        steps.append(_presence(node))
        resolved = self._jobs.resolved(node)
        way = f"by {resolved.route}" if resolved.route else "no way leads to the node now"
        routed = Verdict.ALLOWED if resolved.route else Verdict.REFUSED
        steps.append(ExplainStep(rule=ExplainRule.ROUTE, verdict=routed, detail=way))
        steps.append(await self._whitelist(node, question))
        return steps

    async def _principal(self, principal: Principal, name: str) -> Principal:
        if not name or name == principal.name:
            return principal
        if principal.role is not Role.ADMIN:
            raise PermissionDenied("only an admin may ask for another user")
        for user in await self._identities.list_users(principal):
            if user.name == name:
                return Principal(organization=user.organization, role=user.role, name=user.name)
        raise NotFound(f"there is no user {name}", user=name)

    async def _whitelist(self, node: Node, question: ExplainRun) -> ExplainStep:
        link = self._links.get(node.organization, node.name)
        if link is None:
            return _unasked(self._routes.of_node(node).not_asked(node))
        with trio.move_on_after(_ANSWER):
            answer = await self._asks.ask(link, question.command, question.input)
            verdict = Verdict.ALLOWED if answer.permitted else Verdict.REFUSED
            detail = f"{answer.reason}: {answer.detail}" if answer.reason else answer.detail
            return ExplainStep(rule=ExplainRule.WHITELIST, verdict=verdict, detail=detail)
        return _unasked(f"the node has not answered within {_ANSWER:g} s")


def _unasked(why: str) -> ExplainStep:
    return ExplainStep(rule=ExplainRule.WHITELIST, verdict=Verdict.UNKNOWN, detail=why)


def _role(principal: Principal) -> ExplainStep:
    allowed = may(principal.role, Action.START_JOBS)
    detail = f"{principal.label} is {principal.role.value}, who may {'start' if allowed else 'not start'} jobs"
    return ExplainStep(rule=ExplainRule.ROLE, verdict=Verdict.ALLOWED if allowed else Verdict.REFUSED, detail=detail)


def _presence(node: Node) -> ExplainStep:
    up = node.presence is Presence.UP
    return ExplainStep(
        rule=ExplainRule.NODE,
        verdict=Verdict.ALLOWED if up else Verdict.REFUSED,
        detail=f"{node.presence.value} ({node.presence_reason})",
    )
