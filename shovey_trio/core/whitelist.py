"""What a node is willing to run: name → argument vector, and nothing that is not in the list.

The file is JSON. schob's own file works as it is::

    {"whitelist": {"chef-client": "chef-client -o 'role[base]'"}}

and so does the map without the outer key. A value is a command line, or an object with ``argv`` and, where wanted,
``cwd``, ``env`` and ``timeout``. A command line is split by the shell's rules for words and quotes, once, when the file
is read; no shell ever sees it, so ``$``, ``*``, ``;`` and ``|`` are ordinary characters. (schob keeps the backslash of
``a\\ b`` in the argument: reference/shovey.md, section 6, fault 29. Here it is one argument, ``a b``.)
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from shovey_trio.core.errors import Code, Exit, ShoveyError

# A thousand commands with long lines; more is not a whitelist but a mistake.
MAX_FILE_BYTES = 1_048_576

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENTRY_KEYS = frozenset({"argv", "cwd", "env", "timeout"})


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
class Entry:
    """A command that may run.

    Attributes:
        argv: never empty; ``argv[0]`` is looked up in the command's own PATH unless it has a slash.
        cwd: absolute, or None for ``/``.
        env: added to the clean environment.
        timeout: seconds at most, whatever the order asks for; None leaves it to the order.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None


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
        found = [*_problems_of_name(name), *_problems_of_value(value)]
        if name in entries:
            found.append("named twice, so it is unclear which one would run")
        if found:
            problems.extend(Problem(entry=name or "(empty name)", message=message) for message in found)
            # Kept as seen, so that a second one of the same name is reported too.
            entries.setdefault(name, Entry(name=name, argv=("",)))
        else:
            entries[name] = _entry(name, value)
    if problems:
        raise WhitelistInvalid(tuple(problems))
    return Whitelist(entries=MappingProxyType(entries))


class _FileProblem(Exception):
    """The file as a whole cannot be read."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as written: a dict would hide that one stands there twice."""


def _load(text: bytes) -> Any:
    if len(text) > MAX_FILE_BYTES:
        raise _FileProblem(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_Pairs)
    except UnicodeDecodeError as error:
        raise _FileProblem(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _FileProblem(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _FileProblem("not JSON that anybody wrote: nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise _FileProblem(f"not JSON: {error}") from None


def _commands_of(document: Any) -> _Pairs:
    if not isinstance(document, _Pairs):
        raise _FileProblem("must be a JSON object")
    names = [name for name, _ in document]
    if "whitelist" not in names or not isinstance(dict(document)["whitelist"], _Pairs):
        return document
    if len(names) > 1:
        others = sorted(set(names) - {"whitelist"}) or ["whitelist (a second one)"]
        raise _FileProblem(f"beside 'whitelist' there must be nothing, but there is {', '.join(others)}")
    commands = document[0][1]
    assert isinstance(commands, _Pairs)
    return commands


def _entry(name: str, value: Any) -> Entry:
    if isinstance(value, str):
        return Entry(name=name, argv=tuple(shlex.split(value)))
    keys = dict(value)
    timeout = keys.get("timeout")
    return Entry(
        name=name,
        argv=tuple(keys["argv"]),
        cwd=keys.get("cwd"),
        env=MappingProxyType(dict(keys.get("env", ()))),
        timeout=None if timeout is None else float(timeout),
    )


def _problems_of_name(name: str) -> Iterator[str]:
    if not name:
        yield "a command needs a name"
    elif _CONTROL.search(name):
        yield "the name has a control character"


def _problems_of_value(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield from _problems_of_line(value)
        case _Pairs():
            yield from _problems_of_object(value)
        case _:
            yield "must be a command line or an object with 'argv'"


def _problems_of_line(line: str) -> Iterator[str]:
    try:
        argv = shlex.split(line)
    except ValueError as error:
        yield f"not a command line: {str(error).lower()}"
    else:
        yield from _problems_of_argv(argv)


def _problems_of_argv(argv: Any) -> Iterator[str]:
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        yield "'argv' must be a list of strings"
    elif not argv or not argv[0]:
        yield "names no program"
    elif any(not _is_passable(word) for word in argv):
        yield "an argument has a NUL or a lone surrogate, which no program can be given"


def _problems_of_object(pairs: _Pairs) -> Iterator[str]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        yield "a key stands there twice"
    if unknown := sorted(keys.keys() - _ENTRY_KEYS):
        yield f"not understood: {', '.join(unknown)}"
    if "argv" not in keys:
        yield "has no 'argv'"
    else:
        yield from _problems_of_argv(keys["argv"])
    cwd = keys.get("cwd")
    if cwd is not None and not (isinstance(cwd, str) and cwd.startswith("/") and _is_passable(cwd)):
        yield "'cwd' must be an absolute path"
    timeout = keys.get("timeout")
    if timeout is not None and not _is_duration(timeout):
        yield "'timeout' must be a number of seconds above 0"
    if "env" in keys:
        yield from _problems_of_env(keys["env"])


def _problems_of_env(env: Any) -> Iterator[str]:
    if not isinstance(env, _Pairs):
        yield "'env' must be an object"
        return
    if len(dict(env)) < len(env):
        yield "'env' names a variable twice"
    for name, value in env:
        if not _ENV_NAME.fullmatch(name):
            yield f"'env' has {name!r}, which is no variable name"
        elif name.startswith("SHOVEY_"):
            yield f"'env' has {name}, which is reserved"
        if not isinstance(value, str) or not _is_passable(value):
            yield f"'env' must give {name!r} a string without NUL"


def _is_duration(value: Any) -> bool:
    # bool is an int to Python; NaN and infinity are numbers to its JSON reader.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 10**9


def _is_passable(word: str) -> bool:
    return "\0" not in word and not any("\ud800" <= character <= "\udfff" for character in word)
