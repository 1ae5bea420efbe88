"""What a command is given: what may be stored of it, what comes back, and the bounds, each to the byte."""

from __future__ import annotations

import pytest

from shovey_trio.core.jobs.command_input import (
    MAX_NAMES,
    MAX_SECRETS,
    MAX_STDIN,
    MAX_WORDS,
    NO_INPUT,
    NO_RECORD,
    CommandInput,
    InputRecord,
    Secrets,
    input_problems,
    restore_input,
)

FULL = CommandInput(
    args={"a": "1"},
    env={"E": "2"},
    stdin=b"in",
    user="www",
    secrets=Secrets(env={"T": "secret", "S": "secret"}),
)


def fields(given: CommandInput) -> list[str]:
    return [name for name, _ in input_problems(given)]


def test_only_what_is_no_secret_is_stored_and_comes_back() -> None:
    assert FULL.record() == InputRecord(
        args={"a": "1"}, env={"E": "2"}, user="www", stdin_bytes=2, secret_env=("S", "T"), secret_stdin=False
    )
    assert restore_input(FULL.record(), b"in") == CommandInput(args={"a": "1"}, env={"E": "2"}, stdin=b"in", user="www")
    secret = CommandInput(secrets=Secrets(stdin=b"secret"))
    assert secret.record() == InputRecord(secret_stdin=True)
    assert (secret.whole_stdin(), FULL.whole_stdin(), NO_INPUT.whole_stdin()) == (b"secret", b"in", b"")


def test_an_order_needs_the_secrets_when_there_were_any() -> None:
    for given, needs in (
        (FULL, True),
        (CommandInput(secrets=Secrets(stdin=b"secret")), True),
        (CommandInput(args={"a": "1"}), False),
    ):
        assert given.record().needs_secrets is needs


@pytest.mark.parametrize(
    "given",
    [
        CommandInput(args={"a": ""}),
        CommandInput(env={"a": ""}),
        CommandInput(stdin=b"a"),
        CommandInput(user="a"),
        CommandInput(secrets=Secrets(env={"a": ""})),
        CommandInput(secrets=Secrets(stdin=b"a")),
    ],
)
def test_whatever_is_given_is_something(given: CommandInput) -> None:
    assert given
    assert given.record()
    assert not NO_INPUT
    assert not NO_RECORD
    assert not NO_INPUT.record()
    assert not Secrets()


@pytest.mark.parametrize(
    ("within", "beyond", "field"),
    [
        (
            CommandInput(args={f"n{n}": "" for n in range(MAX_NAMES)}),
            CommandInput(args={f"n{n}": "" for n in range(MAX_NAMES + 1)}),
            "args",
        ),
        (CommandInput(args={"n" * 64: "\x01"}), CommandInput(args={"n" * 65: ""}), "args"),
        (CommandInput(env={"_": ""}), CommandInput(env={"1": ""}), "env"),
        (CommandInput(env={"SHOVEY": ""}), CommandInput(env={"SHOVEY_": ""}), "env"),
        (CommandInput(args={"SHOVEY_": ""}), CommandInput(secrets=Secrets(env={"SHOVEY_A": "long enough"})), "env"),
        (CommandInput(args={"A": "x"}, env={"A": "x"}), CommandInput(args={"A": "\0"}, env={"A": "x"}), "args"),
        (
            CommandInput(env={"A": "x"}, secrets=Secrets(env={"B": "long enough"})),
            CommandInput(env={"A": "x"}, secrets=Secrets(env={"A": "long enough"})),
            "secret_env",
        ),
        (
            CommandInput(args={"a": "é" * (MAX_WORDS // 2 - 2), "b": "x"}),
            CommandInput(args={"a": "é" * (MAX_WORDS // 2 - 2)}, env={"b": "\ud800"}),
            "args",
        ),
        (CommandInput(stdin=bytes(MAX_STDIN)), CommandInput(stdin=bytes(MAX_STDIN + 1)), "stdin"),
        (
            CommandInput(secrets=Secrets(env={"A": "x" * 1000}, stdin=b"x" * (MAX_SECRETS - 1000))),
            CommandInput(secrets=Secrets(env={"A": "x" * 1000}, stdin=b"x" * (MAX_SECRETS - 999))),
            "secret_env",
        ),
        (CommandInput(secrets=Secrets(env={"A": "éé"})), CommandInput(secrets=Secrets(env={"A": "é1"})), "secret_env"),
        (CommandInput(secrets=Secrets(stdin=b"1234")), CommandInput(secrets=Secrets(stdin=b" 123\n")), "stdin"),
        (CommandInput(stdin=b"a"), CommandInput(stdin=b"a", secrets=Secrets(stdin=b"1234")), "stdin"),
        (CommandInput(user="u" * 64), CommandInput(user="u" * 65), "user"),
        (CommandInput(user="ü"), CommandInput(user="u\n"), "user"),
    ],
)
def test_each_bound_holds_to_the_byte_and_names_its_field(
    within: CommandInput, beyond: CommandInput, field: str
) -> None:
    assert fields(within) == []
    assert fields(beyond) == [field]
