"""Whether an entry of the whitelist permits what an order gives its command, and what then runs.

Everything that is not described in the entry is refused. A refusal says which name it is about and which rule, never
the value: it travels to the controller and into its store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.core.whitelist.entry import Entry
from shovey_trio.core.whitelist.values import ValueRule


class InputRefused(Exception):
    """The entry does not permit the input; ``refusal`` is the stable word, ``detail`` names the rule."""

    reason = "INPUT_REFUSED"

    def __init__(self, refusal: RefusalReason, detail: str) -> None:
        super().__init__(f"{refusal.value}: {detail}")
        self.refusal = refusal
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What runs.

    Attributes:
        argv: one argument per element, never to be split again.
        env: of entry and order, without what is secret.
        user: empty for the agent's own account.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    user: str
    stdin: bytes = field(repr=False)


def permit(entry: Entry, given: CommandInput) -> Permit:
    """Judges an input.

    Raises:
        InputRefused: the entry does not permit it.
    """
    if entry.users or given.user:
        _check_user(entry, given.user)
    argv = entry.argv if entry.template is None else entry.template.fill(_arguments(entry, given.args))
    if entry.template is None and given.args:
        raise InputRefused(RefusalReason.ARGUMENT_NOT_PERMITTED, f"{entry.name!r} takes no arguments")
    env = {**entry.env, **_environment(entry, given)}
    if size := len(given.whole_stdin()):
        if not entry.stdin:
            raise InputRefused(RefusalReason.STDIN_NOT_PERMITTED, f"{entry.name!r} takes no standard input")
        if size > entry.stdin:
            raise InputRefused(RefusalReason.STDIN_NOT_PERMITTED, f"{size} bytes; {entry.stdin} are permitted")
    return Permit(argv=argv, env=env, user=given.user or entry.user, stdin=given.whole_stdin())


def _check_user(entry: Entry, user: str) -> None:
    if user and user != entry.user and user not in entry.users:
        permitted = ", ".join(dict.fromkeys(filter(None, (entry.user, *entry.users)))) or "none"
        raise InputRefused(RefusalReason.USER_NOT_PERMITTED, f"an order may choose {permitted}, not {user}")


def _arguments(entry: Entry, given: Mapping[str, str]) -> dict[str, str]:
    if unknown := sorted(given.keys() - entry.args.keys()):
        known = ", ".join(sorted(entry.args))
        raise InputRefused(
            RefusalReason.ARGUMENT_NOT_PERMITTED, f"{entry.name!r} has no argument {unknown[0]}; it has {known}"
        )
    values: dict[str, str] = {}
    for name, rule in entry.args.items():
        value = given.get(name, rule.default)
        if value is not None:
            if (why := rule.mismatch(value)) is not None:
                raise InputRefused(RefusalReason.ARGUMENT_MISMATCH, f"argument {name} {why}")
            values[name] = value
        elif not rule.optional:
            raise InputRefused(RefusalReason.ARGUMENT_MISMATCH, f"argument {name} is missing")
    return values


def _environment(entry: Entry, given: CommandInput) -> dict[str, str]:
    """The variables of the order that are not secret, with the defaults of those it does not give."""
    for name, value in (*given.env.items(), *given.secrets.env.items()):
        rule: ValueRule | None = entry.env_rules.get(name)
        if rule is None:
            raise InputRefused(RefusalReason.ENV_NOT_PERMITTED, f"{entry.name!r} lets no order set {name}")
        if (why := rule.mismatch(value)) is not None:
            raise InputRefused(RefusalReason.ENV_NOT_PERMITTED, f"variable {name} {why}")
    defaults = {
        name: rule.default
        for name, rule in entry.env_rules.items()
        if rule.default is not None and name not in given.secrets.env
    }
    return {**defaults, **given.env}
