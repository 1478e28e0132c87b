"""The imitation of model servers behaves as the code in the docs expects of the real ones."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from fanout_sync import RetryAfter, fanout_map
from fanout_sync.testing.model_server import ModelServer

HANG = 30


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(refuse_every=2) as server:
        yield server


def post(url: str, request: Mapping[str, Any]) -> Any:
    body = json.dumps({"model": "m", **request}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=HANG) as answer:
        return json.load(answer)


def chat(server: ModelServer, prompt: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": prompt}]
    return post(f"{server.environment['OPENAI_BASE_URL']}/chat/completions", {"messages": messages, **fields})


def test_chat_completions_answer_the_last_message(server: ModelServer) -> None:
    """An answer has the text, a reason for its end, and usage."""
    answer = chat(server, "one")
    assert answer["choices"][0]["message"]["content"] == "an answer to one"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}


def test_messages_answer_parts_of_text(server: ModelServer) -> None:
    """Anthropic's endpoint takes the parts of a message, too."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "one"}]}]
    answer = post(f"{server.environment['ANTHROPIC_BASE_URL']}/v1/messages", {"messages": messages})
    assert answer["content"] == [{"type": "text", "text": "an answer to one"}]
    assert answer["usage"] == {"input_tokens": 1, "output_tokens": 4}


def test_answers_are_valid_under_the_schema(server: ModelServer) -> None:
    """An answer to a request with a JSON Schema has its properties, of their types."""
    schema = {
        "type": "object",
        "properties": {
            "mood": {"enum": ["good", "bad"]},
            "stars": {"type": "integer"},
            "words": {"type": "array"},
            "by": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = chat(server, "one", response_format=wanted)
    assert json.loads(answer["choices"][0]["message"]["content"]) == {
        "mood": "good",
        "stars": 1,
        "words": [],
        "by": {"name": "some text"},
    }


def test_some_prompts_are_refused_once(server: ModelServer) -> None:
    """Each second prompt is refused with 429 and `retry-after` when it comes first, and answered after that."""
    chat(server, "one")
    with pytest.raises(urllib.error.HTTPError) as refused:
        chat(server, "two")
    with refused.value as answer:
        assert (answer.code, answer.headers["retry-after"]) == (429, "1")
    chat(server, "two")
    assert [request.status for request in server.requests] == [200, 429, 200]


def test_an_unknown_endpoint_is_not_found(server: ModelServer) -> None:
    """A wrong path gets status 404, as from a real server."""
    with pytest.raises(urllib.error.HTTPError) as wrong:
        post(f"{server.environment['OPENAI_BASE_URL']}/completions", {"messages": []})
    with wrong.value as answer:
        assert answer.code == 404


def test_steps_wait_as_the_server_asks_and_nothing_is_asked_twice(server: ModelServer) -> None:
    """A refused prompt comes again after `retry-after`, and each prompt is answered once."""

    def ask(prompt: str) -> str:
        try:
            return str(chat(server, prompt)["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            with error:
                raise RetryAfter(int(error.headers["retry-after"])) from error

    run = fanout_map(ask, [f"q{n}" for n in range(6)], max_concurrency=3, retry=3)
    assert run.values() == [f"an answer to q{n}" for n in range(6)]
    answered = {request.prompt: request.received for request in server.requests if request.status == 200}
    refused = {request.prompt: request.received for request in server.requests if request.status == 429}
    assert (len(answered), len(refused), len(server.requests)) == (6, 3, 9)
    assert all(answered[prompt] - received >= 1 for prompt, received in refused.items())
