"""Failed steps grouped by their reasons, for summaries."""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import define, field

from ..records.report import reason_in

MAX_REASON_CHARS = 200
"""How many characters of a reason are shown."""

MAX_READ = 1000
"""How many characters of a reason are looked at to find whether another one is the same."""

MAX_NAMED = 3
"""How many steps of a group are named."""

MAX_GROUPS = 1000
"""How many groups are kept; failed steps that would need more of them are only counted."""

_MAX_COMMAND_CHARS = 60
_ENDED = r"(?='? (?:returned non-zero exit status|died with|timed out after) )"
_LONG_COMMAND = re.compile(rf"(Command '.{{{_MAX_COMMAND_CHARS}}}).*?{_ENDED}", re.DOTALL)
_COMMAND = re.compile(rf"Command '.*{_ENDED}")
_CODE = (
    r"(?:\b|_|status|error|exit|return|response|http)"  # as in status_code and statusCode
    r"(?:code|status|errno|http(?:/[\d.]+)?)\b\W{0,4}\d+\b"
)
_CODE_OR_ID = re.compile(rf"{_CODE}|([\w.+-]*\d[\w.+-]*)", re.IGNORECASE)


@define
class _Group:
    """Failed steps with the same reason.

    Attributes:
        verb: What happened to them, in a word.
        reason: The reason of the first.
        agent: The agent of the first.
        count: How many there are.
        named: The task ids of the first few.
        latest: The number of the last of them, among all failed steps.
    """

    verb: str
    reason: str
    agent: str
    count: int = 0
    named: list[str] = field(factory=list)
    latest: int = 0


class FailureGroups:
    """Groups failed steps by their reasons, with a line for each group.

    Two reasons are the same if their first lines differ only in words that have a digit, such as numbers, durations,
    addresses and ids of requests, or in the command of a program. A number after "code", "status", "HTTP" or "errno"
    is no such word: 429 and 500 are two reasons. All cancelled steps are one group.

    Args:
        shown: Makes text fit to be shown: it gets a text and how many characters are shown at most.
    """

    def __init__(self, shown: Callable[[str, int], str]) -> None:
        self.count = 0
        self._shown = shown
        self._groups: dict[tuple[str, str], _Group] = {}

    def add(self, task_id: str, agent: str, verb: str, reason: str) -> None:
        """Add a failed step.

        Args:
            task_id: Its task id.
            agent: Its agent.
            verb: What happened to it, in a word; `""` if that is not known, `"cancelled"` if it is a cancelled step.
            reason: Its output; the first line counts, or the note after an answer that does not fit its schema.
        """
        self.count += 1
        reason = _LONG_COMMAND.sub(r"\1…", reason_in(reason))
        # Cut after that: the words that do not count may be of any length.
        key = verb, "" if verb == "cancelled" else same_reason(self._shown(reason, MAX_READ))[:MAX_REASON_CHARS]
        reason = self._shown(reason, MAX_REASON_CHARS)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                return
            group = self._groups[key] = _Group(verb, reason, agent)
        group.count += 1
        group.latest = self.count
        if len(group.named) < MAX_NAMED:
            group.named.append(self._shown(task_id, MAX_REASON_CHARS))

    def lines(self, most: int) -> list[str]:
        """Return a line for each group: the largest first, the cancelled steps last.

        Args:
            most: How many lines there may be. If there are more groups, the last line counts the rest.
        """
        groups = sorted(self._groups.values(), key=lambda group: (group.verb == "cancelled", -group.count))
        told = groups
        if len(groups) > most or sum(group.count for group in groups) < self.count:
            cancelled = [group for group in groups if group.verb == "cancelled"]
            told = groups[: most - 1 - len(cancelled)] + cancelled
        left = self.count - sum(group.count for group in told)
        return [*map(self._line, told), *[f"  … and {left} more"] * bool(left)]

    def latest(self, most: int) -> list[tuple[int, str]]:
        """Return the size and the reason of the groups that grew last, the last one first; at most `most` of them."""
        groups = sorted(self._groups.values(), key=lambda group: -group.latest)
        return [(group.count, group.reason) for group in groups[:most]]

    def _line(self, group: _Group) -> str:
        if group.count == 1:
            verb = f" {group.verb}" if group.verb else ""
            return f"  {group.named[0]} ({self._shown(group.agent, MAX_REASON_CHARS)}){verb}: {group.reason}"
        more = f" and {group.count - MAX_NAMED} more" if group.count > MAX_NAMED else ""
        return f"  {group.count} {group.verb or 'failed'}: {group.reason} ({', '.join(group.named)}{more})"


def same_reason(reason: str) -> str:
    """Return what two reasons have in common that `FailureGroups` takes for the same."""
    return _CODE_OR_ID.sub(lambda found: found[0] if found[1] is None else "#", _COMMAND.sub("Command", reason))


def first_line(text: str, most: int) -> str:
    """Return the first line of a text, cut to `most` characters."""
    lines = text[: most + 1].splitlines() or [""]
    is_cut = len(lines) > 1 or len(text) > most
    return f"{lines[0][:most]} …" if is_cut else lines[0]
