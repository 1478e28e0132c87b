"""What kind of failure a program tells of, found by the status of the server or by the words of the message."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

from ..answer import Failure, FailureKind

LONGEST_MESSAGE = 1000
"""Characters of the program's own message that are kept."""

_ANY_CASE = re.IGNORECASE

_STATUS = re.compile(
    r"(?:\bstatus(?: code)?|\bHTTP|\brejected|\bAPI Error|\blast error|^)\W{0,3}([45]\d\d)\b", _ANY_CASE
)
"""The status of a server in the message of a program."""

_WAIT = re.compile(
    r"\b(?:retry|try again|wait|reset|resets)\b[^.\d\n]{0,30}?\b(\d+(?:\.\d+)?) ?"
    r"(ms|milliseconds?|s|sec|seconds?|m|min|minutes?)\b",
    _ANY_CASE,
)
_SECONDS_OF = {"m": 60.0, "s": 1.0}

_UNPAID = re.compile(
    r"insufficient_quota|check your plan and billing|credit balance is too low|billing_error|payment required",
    _ANY_CASE,
)

_WORDS: tuple[tuple[FailureKind, re.Pattern[str]], ...] = (
    ("key", _UNPAID),
    (
        "rate_limited",
        re.compile(
            r"rate[ _-]?limit|too many requests|(usage|session|weekly|hourly|daily) limit|resource.exhausted"
            r"|quota (?:is )?exceeded|exceeded your .{0,20}quota|hit your limit",
            _ANY_CASE,
        ),
    ),
    (
        "key",
        re.compile(
            r"invalid .{0,12}(api.?key|token|auth)|authentication|unauthori[sz]ed|not logged in|not authenticated"
            r"|please (?:run )?/?log ?in|(specify|set|missing|provide)\b.{0,40}_(API_)?(KEY|TOKEN)|OAuth token",
            _ANY_CASE,
        ),
    ),
    (
        "model",
        re.compile(
            r"\bmodel\b.{0,80}(not found|not exist|not supported|not available|not valid|no access)|unknown model"
            r"|invalid model|no such model|issue with the selected model|model_not_found|ModelNotFound"
            r"|invalid.{0,3}json.{0,3}schema|invalid schema for response_format",
            _ANY_CASE,
        ),
    ),
    ("permission", re.compile(r"forbidden|permission.{0,12}(denied|error|refused)|not permitted", _ANY_CASE)),
    (
        "overloaded",
        re.compile(
            r"overloaded|high demand|service.?unavailable|internal.?server.?error|server_error|at capacity"
            r"|bad gateway|gateway time-?out|capacity.{0,3}exhausted",
            _ANY_CASE,
        ),
    ),
    (
        "network",
        re.compile(
            r"ECONN|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EPIPE|fetch failed|failed to fetch|getaddrinfo|socket hang up"
            r"|connection_?.{0,12}(failed|refused|reset|closed|error|lost|aborted)|(error|failed) sending request"
            r"|network (error|is)|waiting for network|stream disconnected|unable to connect|certificate",
            _ANY_CASE,
        ),
    ),
)

_KINDS_OF_STATUS: Mapping[int, FailureKind] = {401: "key", 402: "key", 403: "permission", 404: "model", 408: "network"}


@frozen
class Remedies:
    """What to check or do about the failures of one program.

    Attributes:
        program: Its name.
        key: About its login.
        model: About the model.
        cap: About the cap on turns or cost.
        permission: About what it may do.
    """

    program: str
    key: str
    model: str
    permission: str
    cap: str = "raise max_steps of the step"

    def failure(
        self, message: str, status: int | None = None, *, kind: FailureKind | None = None, wait_s: float | None = None
    ) -> Failure:
        """Return the failure that a program has told of.

        Args:
            message: What the program says.
            status: The HTTP status that the server has answered with, if the program tells it.
            kind: What kind it is; by default that follows from the status, or the message.
            wait_s: Seconds to wait before another attempt; by default the message is searched for them.
        """
        said = " ".join(message.split())[:LONGEST_MESSAGE]
        kind = kind or kind_of(said, status)
        text = f"{self.program}: {_HEADS[kind]}{f' ({status})' if status else ''}{f': {said}' if said else ''}"
        remedies = {"key": self.key, "model": self.model, "permission": self.permission, "cap": self.cap}
        if kind in remedies:
            text = f"{text.rstrip('.')}. To do: {remedies[kind]}"
        if kind != "rate_limited":
            return Failure(kind, text)
        return Failure(kind, text, wait_in(said) if wait_s is None else wait_s)


_HEADS: Mapping[FailureKind, str] = {
    "rate_limited": "the server limits the rate of requests",
    "overloaded": "the server is overloaded, or has failed",
    "network": "the server cannot be reached",
    "key": "the login or key is refused",
    "model": "the server refuses the model, or what is asked of it",
    "cap": "a cap is reached",
    "permission": "permission is refused",
    "program": "failed",
}


def kind_of(message: str, status: int | None = None) -> FailureKind:
    """Return what kind of failure a message tells of."""
    if status is None and (found := _STATUS.search(message)) is not None:
        status = int(found[1])
    if status == 429:
        return "key" if _UNPAID.search(message) else "rate_limited"
    if status is not None and status in _KINDS_OF_STATUS:
        return _KINDS_OF_STATUS[status]
    if status is not None and status >= 500:
        return "overloaded"
    return next((kind for kind, words in _WORDS if words.search(message)), "program")


def wait_in(message: str) -> float | None:
    """Return the seconds that a message asks to wait; `None` if it does not say."""
    found = _WAIT.search(message)
    if found is None:
        return None
    unit = found[2].lower()
    return float(found[1]) * (0.001 if unit.startswith(("ms", "mil")) else _SECONDS_OF[unit[0]])
