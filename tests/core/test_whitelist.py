"""The whitelist: what is in it runs as written, what is unclear is an error, and everything else is refused."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.whitelist.whitelist import (
    DEFAULT_WHITELIST,
    MAX_FILE_BYTES,
    NotWhitelisted,
    WhitelistInvalid,
    parse_whitelist,
)


def _problems(text: bytes | object) -> list[str]:
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    with pytest.raises(WhitelistInvalid) as caught:
        parse_whitelist(data)
    return [str(problem) for problem in caught.value.problems]


def _argv(line: str) -> tuple[str, ...]:
    return parse_whitelist(json.dumps({"whitelist": {"x": line}}).encode()).resolve("x").argv


def test_file_of_schob_works_as_it_is() -> None:
    whitelist = parse_whitelist(b'{"whitelist": {"chef-client": "chef-client", "ls": "/bin/ls -l \\"/tmp/a b\\""}}')
    assert whitelist.resolve("chef-client").argv == ("chef-client",)
    assert whitelist.resolve("ls").argv == ("/bin/ls", "-l", "/tmp/a b")


def test_map_without_the_outer_key_works_too_even_with_a_command_called_whitelist() -> None:
    whitelist = parse_whitelist(b'{"whitelist": "show-whitelist", "other": "true"}')
    assert whitelist.resolve("whitelist").argv == ("show-whitelist",)
    assert whitelist.resolve("other").argv == ("true",)


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        (r"touch a\ b", ("touch", "a b")),  # fault 29 of the reference keeps the backslash
        ("echo '$HOME' \"$HOME\" $HOME", ("echo", "$HOME", "$HOME", "$HOME")),
        ("echo a;b | c && d > e *", ("echo", "a;b", "|", "c", "&&", "d", ">", "e", "*")),
        ("echo '' \"\"", ("echo", "", "")),
        ("echo # not a comment", ("echo", "#", "not", "a", "comment")),
        ("  spaced\tout\n", ("spaced", "out")),
    ],
)
def test_line_is_split_by_the_shells_rules_for_words_and_never_seen_by_a_shell(
    line: str, argv: tuple[str, ...]
) -> None:
    assert _argv(line) == argv


# Surrogates are left out by default.
_characters = st.characters(exclude_characters="\0", codec="utf-8")


@given(st.lists(st.text(_characters), min_size=1, max_size=6))
def test_quoted_words_come_out_as_they_went_in(words: list[str]) -> None:
    words[0] = words[0] or "x"
    assert _argv(shlex.join(words)) == tuple(words)


def test_richer_entry_is_taken_as_written() -> None:
    entry = {"argv": ["a b", "$x", ""], "cwd": "/srv", "env": {"A": "1"}, "timeout": 5}
    resolved = parse_whitelist(json.dumps({"x": entry}).encode()).resolve("x")
    assert resolved.argv == ("a b", "$x", "")
    assert (resolved.cwd, dict(resolved.env), resolved.timeout) == ("/srv", {"A": "1"}, 5.0)


@pytest.mark.parametrize("name", ["CHEF-CLIENT", "chef-client ", "chef-client -o x", "", "chef", "chef-client\0"])
def test_only_the_exact_name_is_in_the_list(name: str) -> None:
    with pytest.raises(NotWhitelisted):
        DEFAULT_WHITELIST.resolve(name)


def test_default_list_holds_chef_client_and_nothing_else() -> None:
    assert {name: entry.argv for name, entry in DEFAULT_WHITELIST.entries.items()} == {"chef-client": ("chef-client",)}


def test_every_problem_is_reported_with_its_entry() -> None:
    problems = _problems(
        {
            "good": "true",
            "open quote": "echo 'x",
            "empty": "   ",
            "number": 7,
            "future": {"argv": ["x"], "arguments": [], "become": "root"},
            "no argv": {"cwd": "relative", "timeout": 0},
        }
    )
    assert problems == [
        "'open quote': not a command line: no closing quotation",
        "'empty': names no program",
        "'number': must be a command line or an object with 'argv'",
        "'future': not understood: arguments, become",
        "'no argv': has no 'argv'",
        "'no argv': 'cwd' must be an absolute path",
        "'no argv': 'timeout' must be a number of seconds above 0",
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"argv": []},
        {"argv": [""]},
        {"argv": "ls -l"},
        {"argv": ["ls", 1]},
        {"argv": ["ls", "a\0b"]},
        {"argv": ["ls", "\ud800"]},
        {"argv": ["ls"], "timeout": True},
        {"argv": ["ls"], "timeout": float("nan")},
        {"argv": ["ls"], "timeout": float("inf")},
        {"argv": ["ls"], "timeout": "5"},
        {"argv": ["ls"], "env": ["A=1"]},
        {"argv": ["ls"], "env": {"A": 1}},
        {"argv": ["ls"], "env": {"A": "\0"}},
        {"argv": ["ls"], "env": {"A=B": "1"}},
        {"argv": ["ls"], "env": {"SHOVEY_RUN_ID": "1"}},
        {"argv": ["ls"], "cwd": 7},
        "ls \0",
        None,
        [],
    ],
)
def test_entry_that_could_not_run_as_meant_is_an_error(value: object) -> None:
    assert len(_problems({"x": value})) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b"{} {}",
        b'{"whitelist": {"a": "b"}, "other": {}}',
        b'{"whitelist": {"a": "b"}, "whitelist": {}}',
        b'{"x": ' + b"9" * 5000 + b"}",
        b" " * (MAX_FILE_BYTES + 1),
    ],
)
def test_file_that_is_not_a_whitelist_is_one_problem(text: bytes) -> None:
    assert len(_problems(text)) == 1


def test_command_named_twice_is_an_error_even_when_both_agree() -> None:
    assert _problems(b'{"a": "true", "a": "true"}') == ["'a': named twice, so it is unclear which one would run"]
    assert _problems(b'{"a": {"argv": ["x"], "argv": ["y"]}}') == ["'a': a key stands there twice"]


@pytest.mark.parametrize("name", ["", "a\nb", "a\0", "\x7f"])
def test_name_that_cannot_be_shown_is_an_error(name: str) -> None:
    assert len(_problems({name: "true"})) == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_whitelist_or_a_list_of_problems(text: bytes) -> None:
    _assert_whitelist_or_problems(text)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["whitelist", "argv", "cwd", "env", "timeout", "A", ""]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_json)
def test_any_json_is_a_whitelist_or_a_list_of_problems(document: object) -> None:
    _assert_whitelist_or_problems(json.dumps(document).encode())


def _assert_whitelist_or_problems(text: bytes) -> None:
    problems: tuple[object, ...] = ()
    try:
        whitelist = parse_whitelist(text)
    except WhitelistInvalid as error:
        problems = error.problems
    assert problems or all(entry.argv[0] for entry in whitelist.entries.values())
