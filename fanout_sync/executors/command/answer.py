"""What one run of a program has said: its answer, or why there is none."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from ...records.steps import Json

FailureKind = Literal["rate_limited", "overloaded", "network", "key", "model", "cap", "permission", "program"]
"""Why a program has given no answer.

- `rate_limited`: the server asks to be left alone for a while.
- `overloaded`, `network`: another attempt may succeed.
- `key`, `model`, `permission`: another attempt fails as well, until somebody changes something.
- `cap`: the limit on turns or cost that the step was given is reached.
- `program`: anything else.
"""


@frozen
class Failure:
    """Why a program has given no answer.

    Attributes:
        kind: What kind of failure it is; it decides whether the step is tried again.
        message: What happened, and what to check or do.
        wait_s: Seconds to wait before another attempt, if the program tells; only of `"rate_limited"`.
    """

    kind: FailureKind
    message: str
    wait_s: float | None = None


@frozen
class Answer:
    """What one run of a program has said.

    Attributes:
        text: The text of the answer.
        structured: A JSON value, in addition to the text.
        session_id: The session that the program has named; `None` for the one that a step has by default.
        prompt_tokens: Tokens that went in.
        completion_tokens: Tokens that came out.
        cost_usd: The cost, in US dollars.
        failure: Why there is no answer; `None` if there is one.
    """

    text: str = ""
    structured: Json | None = None
    session_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    failure: Failure | None = None
