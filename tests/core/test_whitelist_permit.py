"""Named arguments: accepted exactly when the rule holds in full, and then one element each, as given."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from shovey_trio.core.jobs.command_input import CommandInput, Secrets, input_problems
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.core.whitelist.entry import Entry
from shovey_trio.core.whitelist.permit import InputRefused, permit
from shovey_trio.core.whitelist.values import compile_pattern
from shovey_trio.core.whitelist.whitelist import Problem, WhitelistInvalid, parse_whitelist, whitelist_warnings


def entry(**keys: Any) -> Entry:
    return parse_whitelist(json.dumps({"x": keys}).encode()).resolve("x")


def of_rule(rule: dict[str, Any]) -> Entry:
    return entry(argv=["prog", "{v}"], args={"v": rule})


def refusal(found: Entry, **given_input: Any) -> tuple[RefusalReason, str]:
    with pytest.raises(InputRefused) as caught:
        permit(found, CommandInput(**given_input))
    return caught.value.refusal, caught.value.detail


def problems(**keys: Any) -> list[str]:
    with pytest.raises(WhitelistInvalid) as caught:
        parse_whitelist(json.dumps({"x": keys}).encode())
    return [problem.message for problem in caught.value.problems]


def accepts(rule: dict[str, Any], value: str) -> bool:
    try:
        argv = permit(of_rule(rule), CommandInput(args={"v": value})).argv
    except InputRefused as error:
        if error.refusal is not RefusalReason.ARGUMENT_MISMATCH:
            raise
        return False
    assert argv == ("prog", value)
    return True


# Both engines agree on what these mean; RE2 is the one that decides, ``re`` the witness.
PATTERNS = [
    "[a-z0-9-]+",
    "a*b?",
    "(?:foo|bar|foobar)",
    "-?[0-9]{1,3}",
    "[^;]*",
    ".*",
    "",
    "x|",
    "(a|aa)+$",
    "^[ab]+",
    "a.c",
]
_near = st.text(alphabet="abcfor0129-;.x\n\t é\u2028", max_size=12)


@settings(max_examples=400)
@given(pattern=st.sampled_from(PATTERNS), value=_near | st.text(max_size=20) | st.sampled_from(PATTERNS))
@example(pattern="[a-z0-9-]+", value="abc\n")
@example(pattern="(a|aa)+$", value="aa\n")
@example(pattern=".*", value="a\nb")
def test_value_is_accepted_exactly_when_the_pattern_matches_in_full(pattern: str, value: str) -> None:
    assume("\0" not in value)
    # ``$`` of re matches before a last newline, RE2's does not: in full, neither may.
    expected = re.fullmatch(pattern.replace("$", r"\Z"), value) is not None
    assert accepts({"pattern": pattern}, value) is expected


@pytest.mark.parametrize("value", ["-rf", "--", "a\nb", "a\rb", "a\0", "a\u2028b", "\x1b[0m", "", "\x85"])
def test_without_a_pattern_what_could_be_more_than_a_word_is_refused(value: str) -> None:
    assert not accepts({}, value)


@pytest.mark.parametrize("value", ["a b", "$(reboot)", "; rm", "'\"", "*", "é", "a-b", "{x}", "%s"])
def test_without_a_pattern_what_only_a_shell_would_mind_is_accepted_as_it_is(value: str) -> None:
    assert accepts({}, value)


def test_no_pattern_admits_a_nul_or_a_lone_surrogate() -> None:
    assert not accepts({"pattern": "(?s).*"}, "a\0b")
    assert not accepts({"pattern": "(?s).*"}, "\ud800")


@given(st.integers() | st.integers(-3, 12))
def test_integer_is_accepted_in_its_plain_form_within_its_bounds(number: int) -> None:
    assert accepts({"type": "int", "min": -2, "max": 10}, str(number)) is (-2 <= number <= 10)


@pytest.mark.parametrize("value", ["", "+1", "01", "1.0", "0x1", " 1", "1\n", "-0", "١", "1_0", "9" * 30])
def test_other_spellings_of_a_number_are_refused(value: str) -> None:
    assert not accepts({"type": "int"}, value)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("/srv", True),
        ("/srv/a b", True),
        ("/srv/..data/x", True),
        ("/srvx", False),
        ("/srv/../etc", False),
        ("/srv/./a", False),
        ("/srv//a", False),
        ("/srv/", False),
        ("srv/a", False),
        ("/etc/passwd", False),
        ("/srv/a\n", False),
    ],
)
def test_path_means_what_it_says_and_lies_where_it_may(value: str, accepted: bool) -> None:
    assert accepts({"type": "path", "under": ["/srv/"]}, value) is accepted


def test_enum_takes_its_values_and_no_prefix_of_them() -> None:
    rule = {"type": "enum", "values": ["start", "-x"]}
    assert [accepts(rule, value) for value in ("start", "-x", "star", "START", "start\n")] == [True, True] + [False] * 3


def test_length_is_bounded_in_bytes_whatever_the_pattern() -> None:
    assert accepts({"pattern": "é*", "max_length": 4}, "éé")
    assert not accepts({"pattern": "é*", "max_length": 4}, "ééé")
    assert not accepts({"pattern": "a*"}, "a" * 4097)


def test_pattern_that_would_make_a_backtracking_engine_search_for_years_answers_at_once() -> None:
    began = time.perf_counter()
    assert not accepts({"pattern": "(a+)+b"}, "a" * 4000)
    assert time.perf_counter() - began < 5  # re needs more than the age of the universe


def test_places_are_filled_groups_left_out_and_nothing_is_read_twice() -> None:
    found = entry(
        argv=["tar", "-C", "{dir}", "--owner={user}:{group}", ["--exclude", "{skip}"], "{{{dir}}}", "{opt}"],
        args={
            "dir": {},
            "user": {},
            "group": {"default": "staff"},
            "skip": {"optional": True},
            "opt": {"optional": True},
        },
    )
    assert permit(found, CommandInput(args={"dir": "{user} $x", "user": "a b"})).argv == (
        "tar",
        "-C",
        "{user} $x",
        "--owner=a b:staff",
        "{{user} $x}",
    )
    given_all = {"dir": "d", "user": "u", "group": "g", "skip": "*.o", "opt": "{{"}
    assert permit(found, CommandInput(args=given_all)).argv[4:] == ("--exclude", "*.o", "{d}", "{{")


def test_every_refusal_has_its_word_and_never_the_value() -> None:
    found = entry(
        argv=["p", "{a}"], args={"a": {}}, env={"E": {"pattern": "[0-9]+"}}, stdin=4, user="www", users=["app"]
    )
    args = {"a": "x"}
    secret = "s3cret-value"
    cases = {
        RefusalReason.ARGUMENT_NOT_PERMITTED: {"args": {"a": "x", "b": secret}},
        RefusalReason.ARGUMENT_MISMATCH: {"args": {"a": f"-{secret}"}},
        RefusalReason.ENV_NOT_PERMITTED: {"args": args, "secrets": Secrets(env={"E": secret})},
        RefusalReason.STDIN_NOT_PERMITTED: {"args": args, "secrets": Secrets(stdin=secret.encode())},
        RefusalReason.USER_NOT_PERMITTED: {"args": args, "user": "root"},
    }
    for reason, given_input in cases.items():
        word, detail = refusal(found, **given_input)
        assert word is reason
        assert secret not in detail
    assert refusal(found)[1] == "argument a is missing"
    assert refusal(entry(argv=["p"]), args=args)[0] is RefusalReason.ARGUMENT_NOT_PERMITTED
    assert permit(found, CommandInput(args=args, user="app")).user == "app"
    assert permit(found, CommandInput(args=args)).user == "www"


def test_fixed_variables_cannot_be_set_and_defaults_give_way() -> None:
    found = entry(argv=["p"], env={"FIXED": "1", "LEVEL": {"type": "enum", "values": ["a", "b"], "default": "a"}})
    assert permit(found, CommandInput()).env == {"FIXED": "1", "LEVEL": "a"}
    assert permit(found, CommandInput(env={"LEVEL": "b"})).env == {"FIXED": "1", "LEVEL": "b"}
    assert refusal(found, env={"FIXED": "2"})[0] is RefusalReason.ENV_NOT_PERMITTED
    # A secret is not among them: it reaches the command by another way, and its default must not stand beside it.
    assert permit(found, CommandInput(secrets=Secrets(env={"LEVEL": "b"}))).env == {"FIXED": "1"}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"argv": ["p", "{a}"], "args": {}}, "'args' must be an object of arguments"),
        ({"argv": ["{a}"], "args": {"a": {}}}, "the program itself cannot be an argument"),
        ({"argv": ["p"], "args": {"a": {}}}, "'args' describes a, which has no place in 'argv'"),
        (
            {"argv": ["p", "{b}"], "args": {"b": {"pattern": "("}}},
            "argument 'b': 'pattern' is not one that RE2 takes: ",
        ),
        ({"argv": ["p", "{b}"], "args": {"b": {"pattern": r"(a)\1"}}}, "argument 'b': 'pattern' is not one that RE2"),
        ({"argv": ["p", "{b}"], "args": {"b": {"type": "bool"}}}, "argument 'b': 'type' must be one of "),
        (
            {"argv": ["p", "{b}"], "args": {"b": {"type": "int", "pattern": "1"}}},
            "argument 'b': pattern makes no sense",
        ),
        ({"argv": ["p", "{b}"], "args": {"b": {"type": "int", "min": 3, "max": 2}}}, "argument 'b': 'min' is larger"),
        ({"argv": ["p", "{b}"], "args": {"b": {"type": "enum"}}}, "argument 'b': 'values' must be a list"),
        ({"argv": ["p", "{b}"], "args": {"b": {"default": "-x"}}}, "argument 'b': the default begins with a dash"),
        ({"argv": ["p", "{b}"], "args": {"b": {"type": "path", "under": ["/"]}}}, "argument 'b': 'under' must be"),
        ({"argv": ["p", "{ b}"], "args": {"b": {}}}, "'{ b}': a brace that is no {name} is written twice"),
        ({"argv": ["p"], "env": {"A": {"typ": "int"}}}, "variable 'A': not understood: typ"),
        ({"argv": ["p"], "umask": "8"}, "'umask' must be"),
        ({"argv": ["p"], "output_cap": 0}, "'output_cap' must be"),
        ({"argv": ["p"], "output_cap": "1 MB"}, "'output_cap' must be"),
        ({"argv": ["p"], "output_cap": True}, "'output_cap' must be"),
        ({"argv": ["p"], "nice": 20}, "'nice' must be"),
        ({"argv": ["p"], "stdin": "1GiB"}, "'stdin' must be"),
        ({"argv": ["p"], "limits": {"memory": "much"}}, "'limits' must give memory"),
        ({"argv": ["p"], "limits": {"disk": 1}}, "'limits' has disk"),
        ({"argv": ["p"], "lock": ""}, "'lock' must be"),
        ({"argv": ["p"], "user": "root; rm"}, "'user' must be a name"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(keys: dict[str, Any], problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(**keys)), problems(**keys)


@pytest.mark.parametrize("word", ["a\0b", "a\ud800"])
def test_a_word_that_no_program_can_be_given_stands_nowhere_in_an_entry(word: str) -> None:
    place = {"argv": ["p", "{a}"]}
    rules: list[dict[str, Any]] = [{"type": "enum", "values": ["good", word]}, {"pattern": word}, {"default": word}]
    for rule in rules:
        assert any(found.startswith("argument 'a': ") for found in problems(**place, args={"a": rule})), rule


@pytest.mark.parametrize("word", ["\ud7ff", "\ue000", "\x01", ""])
def test_any_other_word_may_be_a_value(word: str) -> None:
    assert accepts({"type": "enum", "values": [word]}, word)


def warnings(**keys: Any) -> list[str]:
    found: list[Problem] = list(whitelist_warnings(parse_whitelist(json.dumps({"x": keys}).encode())))
    return [problem.message for problem in found]


def test_dangerous_entries_are_warned_of_and_plain_ones_are_not() -> None:
    assert warnings(argv=["/bin/true", "{a}"], args={"a": {"type": "int"}}) == []
    [shell] = warnings(argv=["/bin/sh", "-c", "{a}"], args={"a": {}})
    assert shell.startswith("sh runs what it is told")
    [script] = warnings(argv=["/usr/bin/python3.11", "-"], stdin=True)
    assert "may run what it reads" in script
    [dash] = warnings(argv=["/bin/ls", "{a}"], args={"a": {"pattern": ".+"}})
    assert "leading dash" in dash
    below_zero: dict[str, Any] = {"a": {"type": "int", "min": -5}}
    [negative] = warnings(argv=["/bin/ls", "{a}"], args=below_zero)
    assert negative.startswith("a may be negative")
    assert warnings(argv=["/bin/ls", "--only={a}"], args=below_zero) == []
    assert warnings(argv=["/bin/ls", "--only={a}"], args={"a": {"pattern": ".+"}}) == []
    [loader] = warnings(argv=["/bin/ls"], env={"LD_PRELOAD": {}})
    assert loader.startswith("LD_PRELOAD")
    [forgotten] = warnings(argv=["/bin/ls", "{a}"])
    assert "no 'args'" in forgotten


def test_input_that_no_node_could_take_is_told_without_its_values() -> None:
    for given_input in (
        CommandInput(args={"a b": "hidden"}),
        CommandInput(args={"a": "hidden\0"}),
        CommandInput(env={"SHOVEY_X": "hidden"}),
        CommandInput(env={"A": "hidden"}, secrets=Secrets(env={"A": "hidden"})),
        CommandInput(args={f"n{n}": "hidden" for n in range(101)}),
        CommandInput(args={"a": "hidden" * 20_000}),
        CommandInput(stdin=bytes(256 * 1024 + 1)),
        CommandInput(secrets=Secrets(env={"A": "hid"})),
        CommandInput(secrets=Secrets(stdin=b"hid\n")),
        CommandInput(secrets=Secrets(stdin=b"hidden" * 4000)),
        CommandInput(stdin=b"hidden", secrets=Secrets(stdin=b"hidden")),
        CommandInput(user="hidden" * 20),
    ):
        found = list(input_problems(given_input))
        assert len(found) == 1, given_input
        assert "hidden" not in str(found)
    assert "hidden" not in repr(CommandInput(secrets=Secrets(env={"A": "hidden"}, stdin=b"hidden"), stdin=b"hidden"))


@given(st.text(max_size=30))
def test_any_pattern_compiles_or_is_a_problem(pattern: str) -> None:
    document = {"x": {"argv": ["p", "{a}"], "args": {"a": {"pattern": pattern}}}}
    try:
        parse_whitelist(json.dumps(document).encode())
        compile_pattern(pattern)
    except WhitelistInvalid as error:
        found = [problem.message for problem in error.problems]
        if not all(message.startswith("argument 'a': 'pattern'") for message in found):
            raise
