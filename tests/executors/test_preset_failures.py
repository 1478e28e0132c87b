"""Which kind of failure a message tells of."""

from __future__ import annotations

import pytest

from fanout_sync.executors.command.presets.failures import kind_of, wait_in
from fanout_sync.executors.command.presets.json_lines import last_object_with, message_in

KINDS = {
    "unexpected status 401 Unauthorized: bad": "key",
    "Invalid API key · Fix external API key": "key",
    "Not logged in · Please run /login": "key",
    "OAuth token has expired": "key",
    "When using Gemini API, you must specify the GEMINI_API_KEY environment variable.": "key",
    "Error: No authentication information found.": "key",
    "You exceeded your current quota, please check your plan and billing details (429)": "key",
    "Credit balance is too low": "key",
    "exceeded retry limit, last status: 429 Too Many Requests": "rate_limited",
    "API Error: Request rejected (429) · slow down": "rate_limited",
    "API Error: Rate limit reached": "rate_limited",
    "You've hit your usage limit. Try again in 3 days": "rate_limited",
    "You exceeded your current quota for this minute": "rate_limited",
    "RESOURCE_EXHAUSTED": "rate_limited",
    "You've hit your limit · resets 3pm": "rate_limited",
    "unexpected status 503 Service Unavailable": "overloaded",
    "API Error: 529 Overloaded": "overloaded",
    "We're currently experiencing high demand, which may cause temporary errors.": "overloaded",
    "The model is overloaded. Please try again later.": "overloaded",
    "stream disconnected before completion: error sending request": "network",
    "fetch failed": "network",
    "getaddrinfo EAI_AGAIN api.example": "network",
    "connect ECONNREFUSED 127.0.0.1:1": "network",
    "The 'gpt-9' model is not supported when using this account.": "model",
    "The model `gpt-9` does not exist or you do not have access to it.": "model",
    "There's an issue with the selected model (x). It may not exist": "model",
    "Model not found: a/b": "model",
    "Invalid schema for response_format 'x': 'required' is required": "model",
    "unexpected status 403 Forbidden": "permission",
    "permission denied by policy": "permission",
    "error: unknown option '--foo'": "program",
    "the file has 429 lines": "program",
    "": "program",
}


@pytest.mark.parametrize("message", KINDS)
def test_the_words_of_a_message_tell_its_kind(message: str) -> None:
    """Messages of real programs and their servers."""
    assert kind_of(message) == KINDS[message]


def test_the_status_counts_more_than_the_words() -> None:
    """The status is what the server says."""
    assert kind_of("the model is not there", 429) == "rate_limited"
    assert kind_of("insufficient_quota", 429) == "key"
    assert kind_of("rate limit", 500) == "overloaded"
    assert kind_of("model not found", 400) == "model"
    assert kind_of("anything", 400) == "program"


@pytest.mark.parametrize(
    ("message", "wait_s"),
    [
        ("Rate limit reached. Please try again in 1.5s.", 1.5),
        ("Please retry in 12.25s", 12.25),
        ("retry after 30 seconds", 30.0),
        ("Try again in 250ms", 0.25),
        ("wait 2 minutes", 120.0),
        ("Retry-After: 7 s", 7.0),
        ("slow down", None),
        ("resets 3pm", None),
        ("retry limit exceeded, 5 models tried", None),
    ],
)
def test_the_wait_is_found_in_a_message(message: str, wait_s: float | None) -> None:
    """Seconds, milliseconds and minutes are known."""
    assert wait_in(message) == wait_s


def test_the_body_of_an_answer_in_a_message_is_opened() -> None:
    """What the server says is shorter than its JSON."""
    body = '{"type":"error","status":400,"error":{"type":"invalid_request_error","message":"no"}}'
    assert message_in(body) == ("no (invalid_request_error)", 400)
    assert message_in(f"[API Error: {body}]\nPlease wait") == ("no (invalid_request_error)", 400)
    assert message_in('{"error":{"code":429,"message":"slow","status":"RESOURCE_EXHAUSTED"}}') == (
        "slow (RESOURCE_EXHAUSTED)",
        429,
    )
    for text in ("plain", '{"half', '{"a":1}', '{"error":[]}', '{"error":{"message":5}}'):
        assert message_in(text) == (text, None)


def test_the_last_object_of_a_text_is_found() -> None:
    """It begins a line; braces elsewhere, and objects without the key, are passed over."""
    assert last_object_with("error", 'log {x}\n{\n "error": 1\n}\n{\n "error": 2\n}\ntail {"error":3}') == {"error": 2}
    assert last_object_with("error", '{"other":1}\n{"error":') is None
