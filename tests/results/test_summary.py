"""The summary of a run: failed steps grouped by their reasons, in few lines."""

from __future__ import annotations

from typing import Any

import pytest

from fanout_sync import AgentStepSpec, FunctionExecutor, Run, Runner
from fanout_sync.results.failures import FailureGroups, first_line, same_reason
from fanout_sync.results.run import MAX_SUMMARY_LINES


class RateLimitError(Exception):
    pass


def fail(spec: AgentStepSpec) -> Any:
    if not spec.prompt:
        return "fine"
    raise RateLimitError(spec.prompt)


def run_of(*prompts: str, **options: Any) -> Run:
    specs = [AgentStepSpec(f"t{place}", "worker", "", prompt) for place, prompt in enumerate(prompts)]
    return Runner(FunctionExecutor({"worker": fail}), **options).run(specs)


def test_failures_with_one_reason_are_one_line() -> None:
    """It has how many there are, the reason and the task ids of three."""
    lines = run_of("", *["Error code: 429 - slow down"] * 5, "no money").summary().splitlines()
    reason = "test_summary.RateLimitError: Error code: 429 - slow down"
    assert f"  5 raised: {reason} (t1, t2, t3 and 2 more)" in lines
    assert "  t6 (worker) raised: test_summary.RateLimitError: no money" in lines
    assert lines[0].endswith("6 raised, 1 succeeded")


def test_the_largest_groups_come_first() -> None:
    """Then those that came first."""
    lines = run_of("rare", "two", "often", "two", "often", "often").summary().splitlines()
    assert [line.split(":")[2].split()[0] for line in lines[2:]] == ["often", "two", "rare"]
    assert lines[2].endswith(" (t2, t4, t5)")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ValueError: item 3 of 7", "ValueError: item 12 of 40"),
        ("timed out after 0.5 s", "timed out after 12.25 s"),
        ("<Lock at 0x7f3a5c> is held", "<Lock at 0x7fff01> is held"),
        ("request req_011CSHoEeq failed", "request req_9ZaQ1 failed"),
        ("no such run: 6e2f1c0a-9a31-4c1e-8a55-0d5c8d1b2a3c", "no such run: 00000000-0000-4000-8000-000000000000"),
        ("at 2026-11-25T13:07:21Z: gone", "at 2025-01-02T03:04:05Z: gone"),
        ("worker process 4711 exited with code 7", "worker process 12 exited with code 7"),
        (
            "E: Command '['a', 'x y']' returned non-zero exit status 3.",
            "E: Command 'b' returned non-zero exit status 3.",
        ),
        ("E: Command 'a' timed out after 3 seconds", "E: Command '['b']' timed out after 4.5 seconds"),
    ],
)
def test_reasons_that_differ_in_numbers_and_ids_are_the_same(one: str, other: str) -> None:
    """Whatever has a digit in it does not count, nor does the command of a program."""
    assert same_reason(one) == same_reason(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("APIError: Error code: 429 - no", "APIError: Error code: 500 - no"),
        ("HTTP 404", "HTTP 500"),
        ("status=401", "status=403"),
        ("[Errno 2] no", "[Errno 13] no"),
        ("worker process 1 exited with code 7", "worker process 1 exited with code 9"),
        ("E: Command 'a' returned non-zero exit status 3.", "E: Command 'a' returned non-zero exit status 4."),
        ("ValueError: one", "ValueError: two"),
        ("ValueError: one", "TypeError: one"),
    ],
)
def test_reasons_that_differ_in_words_or_codes_are_not(one: str, other: str) -> None:
    """A code of an error says what happened."""
    assert same_reason(one) != same_reason(other)


def test_long_reasons_are_compared_beyond_what_is_shown() -> None:
    """An id near the beginning may have any length: what is cut off is the same text."""
    groups = FailureGroups(first_line)
    for number in range(10):
        groups.add("t", "a", "raised", f"request req-{'9' * (number + 1)} failed: {'too long a text, ' * 30}")
    assert len(groups.lines(10)) == 1


def test_cancelled_steps_are_one_line() -> None:
    """Whatever cancelled them, after the failed ones."""
    run = run_of(*["broken"] * 2, *["x"] * 20, max_failures=2, max_concurrency=1)
    lines = run.summary().splitlines()
    assert lines[-1].startswith("  20 cancelled: no more steps are started: 2 steps had failed by then")
    assert lines[-1].endswith("(t2, t3, t4 and 17 more)")
    groups = FailureGroups(first_line)
    for number, reason in enumerate(["interrupted", "no budget", "interrupted"]):
        groups.add(f"t{number}", "worker", "cancelled", reason)
    assert groups.lines(10) == ["  3 cancelled: interrupted (t0, t1, t2)"]


def test_a_summary_has_at_most_25_lines() -> None:
    """However many reasons there are, and whatever they and the task ids consist of; the last line counts the rest."""
    words = [f"{chr(97 + place // 26)}{chr(97 + place % 26)}\r\n\x85\u2028more" for place in range(200)]
    specs = [AgentStepSpec(f"t\n{word}", "wor\x0bker", "", word) for word in words]
    run = Runner(FunctionExecutor({"wor\x0bker": fail})).run(specs)
    lines = run.summary().splitlines()
    assert len(lines) == MAX_SUMMARY_LINES == 25
    assert lines[-1] == "  … and 178 more"
    assert sum("raised: test_summary.RateLimitError" in line for line in lines) == 22


def test_few_groups_are_kept_of_many() -> None:
    """A command line that runs for days keeps no more than it shows."""
    groups = FailureGroups(first_line)
    for number in range(2000):
        word = "".join(chr(97 + int(digit)) for digit in str(number))
        groups.add(f"t{number}", "worker", "raised", word)
    assert len(groups.lines(5)) == 5
    assert groups.lines(5)[-1] == "  … and 1996 more"


def test_long_commands_are_shortened() -> None:
    """The exit status of a program is seen, however long its command is."""
    groups = FailureGroups(first_line)
    reason = (
        f"subprocess.CalledProcessError: Command '['claude', '-p', '{'x' * 5000}']' returned non-zero exit status 3"
    )
    groups.add("t0", "worker", "raised", f"{reason}; stderr: no key\nmore")
    (line,) = groups.lines(5)
    assert "returned non-zero exit status 3; stderr: no key" in line
    assert len(line) < 260


@pytest.mark.parametrize(
    "text",
    [
        "E: status_code={}",
        "E: status_code: {}",
        "E: {{'status_code': '{}'}}",
        "E: statusCode={}",
        "E: http_status {}",
        "E: exit_code={}",
        "E: errorCode: {}",
        "E: HTTP/1.1 {} for you",
        "E: Error code: {}",
        "E: returncode={}",
    ],
)
def test_codes_are_no_ids(text: str) -> None:
    """However they are written, and with a number of a request after them that makes no difference."""
    assert same_reason(text.format(400)) != same_reason(text.format(401))
    assert same_reason(text.format(400) + " (req_1a)") == same_reason(text.format(400) + " (req_2b)")
