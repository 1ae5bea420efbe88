"""The table of errors, which stands in the classes themselves."""

from __future__ import annotations

import re

import grpc
import pytest

from shovey_trio.core import errors
from shovey_trio.core.errors import Code, Exit, ShoveyError


def _family(base: type[ShoveyError]) -> set[type[ShoveyError]]:
    return {base}.union(*(_family(child) for child in base.__subclasses__())) if base.__subclasses__() else {base}


CLASSES = sorted(
    (error for error in _family(ShoveyError) if error is not ShoveyError and error.__module__ == errors.__name__),
    key=lambda error: error.__name__,
)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_decides_all_of_its_codes(error: type[ShoveyError]) -> None:
    assert {"reason", "code", "http", "exit"} <= set(vars(error))
    assert re.fullmatch(r"[A-Z][A-Z_]*", error.reason)
    assert error.code not in (Code.OK, Code.UNKNOWN)
    assert 400 <= error.http < 600
    assert error.exit is not Exit.OK
    assert (error.__doc__ or "").strip()


def test_reasons_are_unique() -> None:
    assert len({error.reason for error in CLASSES}) == len(CLASSES) > 15


def test_codes_are_those_of_grpc() -> None:
    assert {code.name: code.value for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}


def test_an_error_carries_its_message_and_details() -> None:
    error = errors.UnknownNodes("no such node: x", nodes="x")
    assert (str(error), error.message, error.details) == ("no such node: x", "no such node: x", {"nodes": "x"})
