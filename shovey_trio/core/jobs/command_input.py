"""What a job gives its command beside the command's name: arguments, environment, standard input, an account.

Three values, by what may be known where. ``CommandInput`` is everything, and lives in memory and in the order that is
sent. ``Secrets`` is the part of it that was marked sensitive: it is never written down on the controller and never
shown (``repr`` included). ``InputRecord`` is what a job keeps and shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Bytes of standard input. It travels in the order, and a controller holds one per job.
MAX_STDIN = 256 * 1024
#: Bytes of all other words together, names included; argv and environment share Linux's 128 KiB a string.
MAX_WORDS = 64 * 1024
#: Arguments, or variables.
MAX_NAMES = 100
#: Bytes of all secrets together: the node looks for each of them in everything the command writes.
MAX_SECRETS = 16 * 1024
#: A shorter secret cannot be redacted: its characters stand in every output.
MIN_SECRET = 4

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Sensitive values. ``stdin`` is empty when standard input is not sensitive."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    stdin: bytes = field(default=b"", repr=False)

    def __bool__(self) -> bool:
        return bool(self.env or self.stdin)


NO_SECRETS = Secrets()


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRecord:
    """What is stored and shown of a command's input: of secrets that they are there, never what they are.

    Attributes:
        stdin_bytes: length of the standard input; 0 when it is sensitive.
        secret_env: names of sensitive variables, in order.
    """

    args: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    stdin_bytes: int = 0
    secret_env: tuple[str, ...] = ()
    secret_stdin: bool = False

    @property
    def needs_secrets(self) -> bool:
        """Whether an order can be made only by who still holds the secrets."""
        return self.secret_stdin or bool(self.secret_env)

    def __bool__(self) -> bool:
        return self != NO_RECORD


NO_RECORD = InputRecord()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandInput:
    """What a command is given; empty when it is given nothing.

    Attributes:
        args: values of the whitelist entry's named arguments.
        env: variables that are not sensitive.
        stdin: what is not sensitive; at most one of this and ``secrets.stdin``.
        user: the account to run as; empty for the entry's own.
    """

    args: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = field(default=b"", repr=False)
    user: str = ""
    secrets: Secrets = NO_SECRETS

    def __bool__(self) -> bool:
        return bool(self.args or self.env or self.stdin or self.user or self.secrets)

    def record(self) -> InputRecord:
        """What may be stored of it."""
        return InputRecord(
            args=dict(self.args),
            env=dict(self.env),
            user=self.user,
            stdin_bytes=len(self.stdin),
            secret_env=tuple(sorted(self.secrets.env)),
            secret_stdin=bool(self.secrets.stdin),
        )

    def whole_stdin(self) -> bytes:
        """Standard input, sensitive or not."""
        return self.stdin or self.secrets.stdin


NO_INPUT = CommandInput()


def restore_input(record: InputRecord, stdin: bytes) -> CommandInput:
    """What can be made again of a stored job's input: everything but its secrets."""
    return CommandInput(args=record.args, env=record.env, stdin=stdin, user=record.user)


def input_problems(given: CommandInput) -> Iterator[tuple[str, str]]:
    """Yields field and problem for everything that no node could accept; values are never part of a problem."""
    for field_name, words in (("args", given.args), ("env", given.env), ("secret_env", given.secrets.env)):
        if len(words) > MAX_NAMES:
            yield field_name, f"at most {MAX_NAMES} names"
        for name, value in words.items():
            if not NAME.fullmatch(name):
                yield field_name, f"{name[:64]!r} is no name: letters, digits and _, at most 64"
            if "\0" in value:
                yield field_name, f"the value of {name[:64]} has a NUL, which no program can be given"
    if any(name.startswith("SHOVEY_") for name in (*given.env, *given.secrets.env)):
        yield "env", "names that begin with SHOVEY_ are reserved"
    if both := sorted(set(given.env) & set(given.secrets.env)):
        yield "secret_env", f"{both[0]} is given twice, once as a secret"
    size = sum(
        len(word.encode("utf-8", "surrogatepass"))
        for words in (given.args, given.env, given.secrets.env)
        for pair in words.items()
        for word in pair
    )
    if size > MAX_WORDS:
        yield "args", f"arguments and environment may have {MAX_WORDS} bytes together"
    if len(given.stdin) + len(given.secrets.stdin) > MAX_STDIN:
        yield "stdin", f"standard input may have {MAX_STDIN} bytes"
    if (
        sum(len(value.encode("utf-8", "surrogatepass")) for value in given.secrets.env.values())
        + len(given.secrets.stdin)
        > MAX_SECRETS
    ):
        yield "secret_env", f"secrets may have {MAX_SECRETS} bytes together"
    if given.stdin and given.secrets.stdin:
        yield "stdin", "standard input is either sensitive or not"
    if len(given.user) > 64 or (given.user and not given.user.isprintable()):
        yield "user", "an account's name has at most 64 printable characters"
    for name, value in given.secrets.env.items():
        if len(value.encode("utf-8", "surrogatepass")) < MIN_SECRET:
            yield "secret_env", f"{name} is shorter than {MIN_SECRET} bytes and could not be redacted"
    if given.secrets.stdin and len(given.secrets.stdin.strip()) < MIN_SECRET:
        yield "stdin", f"a secret shorter than {MIN_SECRET} bytes could not be redacted"
