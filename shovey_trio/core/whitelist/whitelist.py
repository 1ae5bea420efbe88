"""What a node is willing to run: name → argument vector, and nothing that is not in the list.

The file is JSON. schob's own file works as it is::

    {"whitelist": {"chef-client": "chef-client -o 'role[base]'"}}

and so does the map without the outer key. A value is a command line, or an object with ``argv`` and whatever else
``whitelist_entry`` knows; docs/whitelist.md is the whole format. A command line is split by the shell's rules for words
and quotes, once, when the file is read; no shell ever sees it, so ``$``, ``*``, ``;`` and ``|`` are ordinary
characters. (schob keeps the backslash of ``a\\ b`` in the argument: reference/shovey.md, section 6, fault 29. Here it
is one argument, ``a b``.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.whitelist.entry import Entry, Pairs, entry_problems, entry_warnings, read_entry

# A thousand commands with long lines; more is not a whitelist but a mistake.
MAX_FILE_BYTES = 1_048_576

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class WhitelistInvalid(ShoveyError):
    """The file does not say clearly what may run; ``problems`` lists everything that is wrong with it."""

    reason, code, http, exit = "WHITELIST_INVALID", Code.FAILED_PRECONDITION, 500, Exit.USAGE

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class NotWhitelisted(ShoveyError):
    """The node has no command of that name."""

    reason, code, http, exit = "NOT_WHITELISTED", Code.PERMISSION_DENIED, 403, Exit.DENIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a whitelist file; ``entry`` is empty when it concerns the whole file."""

    entry: str
    message: str

    def __str__(self) -> str:
        return f"{self.entry!r}: {self.message}" if self.entry else self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitelist:
    """All commands of a node, by exact name."""

    entries: Mapping[str, Entry]

    def resolve(self, command: str) -> Entry:
        """Returns the entry of that exact name.

        Raises:
            NotWhitelisted: there is none.
        """
        entry = self.entries.get(command)
        if entry is None:
            raise NotWhitelisted(f"command {command!r} is not in the whitelist", command=command)
        return entry


DEFAULT_WHITELIST = Whitelist(entries={"chef-client": Entry(name="chef-client", argv=("chef-client",))})


def parse_whitelist(text: bytes) -> Whitelist:
    """Reads a whitelist file.

    Raises:
        WhitelistInvalid: with every problem of the file, not only the first.
    """
    try:
        commands = _commands_of(_load(text))
    except _FileProblem as problem:
        raise WhitelistInvalid((Problem(entry="", message=str(problem)),)) from None
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    for name, value in commands:
        found = [*_problems_of_name(name), *entry_problems(value)]
        if name in entries:
            found.append("named twice, so it is unclear which one would run")
        if found:
            problems.extend(Problem(entry=name or "(empty name)", message=message) for message in found)
            # Kept as seen, so that a second one of the same name is reported too.
            entries.setdefault(name, Entry(name=name, argv=("",)))
        else:
            entries[name] = read_entry(name, value)
    if problems:
        raise WhitelistInvalid(tuple(problems))
    return Whitelist(entries=MappingProxyType(entries))


def whitelist_warnings(whitelist: Whitelist) -> Iterator[Problem]:
    """Yields what is dangerous about a whitelist that is valid, by name of the command."""
    for name, entry in sorted(whitelist.entries.items()):
        yield from (Problem(entry=name, message=message) for message in entry_warnings(entry))


class _FileProblem(Exception):
    """The file as a whole cannot be read."""


def _load(text: bytes) -> Any:
    if len(text) > MAX_FILE_BYTES:
        raise _FileProblem(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=Pairs)
    except UnicodeDecodeError as error:
        raise _FileProblem(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _FileProblem(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _FileProblem("not JSON that anybody wrote: nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise _FileProblem(f"not JSON: {error}") from None


def _commands_of(document: Any) -> Pairs:
    if not isinstance(document, Pairs):
        raise _FileProblem("must be a JSON object")
    names = [name for name, _ in document]
    if "whitelist" not in names or not isinstance(dict(document)["whitelist"], Pairs):
        return document
    if len(names) > 1:
        others = sorted(set(names) - {"whitelist"}) or ["whitelist (a second one)"]
        raise _FileProblem(f"beside 'whitelist' there must be nothing, but there is {', '.join(others)}")
    commands = document[0][1]
    assert isinstance(commands, Pairs)
    return commands


def _problems_of_name(name: str) -> Iterator[str]:
    if not name:
        yield "a command needs a name"
    elif _CONTROL.search(name):
        yield "the name has a control character"
