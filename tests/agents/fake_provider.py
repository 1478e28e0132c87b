"""A local server that speaks the streaming APIs which the command-line agents use, and does what a prompt tells it."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

PROMPT_TOKENS, COMPLETION_TOKENS = 100, 5
"""What each answer is said to have used."""

RETRY_AFTER_S = 1

ORDER = re.compile(r"\[\[(say|status|busy|empty|hang|loop|tool)(?: (\w+))?\]\]")
"""What a prompt asks of the server, such as `[[status 429]]`, `[[say word]]` or `[[hang]]`."""


ASKS_FOR_JSON = "valid under this JSON Schema"
"""What the prompt of a program without an option for a schema has."""


class FakeProvider:
    """Answers as the APIs of Anthropic, OpenAI (both) and Gemini do, in threads, on 127.0.0.1.

    An answer is `hello WORD`, for the word of `[[say WORD]]` in the prompt; with a schema it is `{"name": "WORD"}`.
    `[[status 429]]` is refused with that status, and the first `[[busy WORD]]` of each word with 429. `[[hang]]` gets
    no answer until the server is closed. The answer to `[[loop]]` is always the call of a tool; to `[[tool]]` only the
    first time.

    Attributes:
        url: Where it listens, without a path.
        asked (Counter[str]): How many requests had each of the orders in them.
        hanging: Set as soon as a request hangs.
    """

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self._busy = Counter[str]()
        self.hanging = threading.Event()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="fake-provider", daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeProvider:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def is_first(self, word: str) -> bool:
        """Return whether this is the first busy request with a word."""
        with self._lock:
            self._busy[word] += 1
            return self._busy[word] == 1

    def note(self, order: str) -> None:
        """Count a request."""
        with self._lock:
            self.asked[order] += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], provider: FakeProvider) -> None:
        super().__init__(address, _Handler)
        self.provider = provider

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a program that is killed in the middle of a request is none of the server's errors."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": []})

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        found = ORDER.findall(body)
        order, argument = found[-1] if found else ("say", "world")
        self.server.provider.note(order)
        if order == "status":
            return self._refuse(int(argument))
        if order == "busy":
            if self.server.provider.is_first(argument):
                return self._refuse(429)
            order = "say"
        if order == "hang":
            self.server.provider.hanging.set()
            self.server.provider.closing.wait(60)
            return self._refuse(503)
        request = json.loads(body)
        if order == "say" and ASKS_FOR_JSON in body:
            order = "json"
        for ending, answer in ANSWERS.items():
            if path.endswith(ending):
                return self._stream(answer(request, order, argument or "world"))
        return self._json(404, {"error": {"message": f"no endpoint {path}", "type": "not_found_error"}})

    def _body(self) -> str:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts).decode()

    def _refuse(self, status: int) -> None:
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "overloaded_error" if status == 529 else "api_error")
        error = {"type": kind, "message": f"refused with {status}", "code": kind}
        self._json(status, {"type": "error", "error": error})

    def _json(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(text)

    def _stream(self, events: Iterator[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(event.encode())
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Print nothing."""


def _typed(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def _data(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _call_of(tools: list[str], order: str) -> tuple[str, dict[str, str]] | None:
    """Return the tool that the answer calls, and with what."""
    if order not in ("loop", "tool"):
        return None
    shells = {"Bash": "command", "bash": "command", "shell_command": "command", "exec_command": "cmd"}
    shells["run_shell_command"] = "command"
    name = next((name for name in tools if name in shells), None)
    return (name, {shells[name]: "echo hi", "description": "say hi"}) if name else None


def anthropic(request: dict[str, Any], order: str, word: str) -> Iterator[str]:
    """Return the stream of an answer of `POST /v1/messages`."""
    tools = [tool["name"] for tool in request.get("tools", [])]
    call = _call_of(tools, order)
    if "StructuredOutput" in tools and order == "say":
        call = ("StructuredOutput", {"name": word})
    if order == "tool" and len(request["messages"]) > 1 and "tool_result" in json.dumps(request["messages"][-1]):
        call = None
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": request["model"], "content": []}
    yield _typed("message_start", message={**message, "stop_reason": None, "stop_sequence": None, "usage": usage})
    if call:
        block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": call[0], "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": json.dumps(call[1])}]
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": part} for part in _parts(order, word)]
    yield _typed("content_block_start", index=0, content_block=block)
    for delta in deltas:
        yield _typed("content_block_delta", index=0, delta=delta)
    yield _typed("content_block_stop", index=0)
    ending = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
    yield _typed("message_delta", delta=ending, usage={"output_tokens": COMPLETION_TOKENS})
    yield _typed("message_stop")


def responses(request: dict[str, Any], order: str, word: str) -> Iterator[str]:
    """Return the stream of an answer of `POST /v1/responses`."""
    tools = [tool.get("name", "") for tool in request.get("tools", [])]
    call = _call_of(tools, order)
    if order == "tool" and "function_call_output" in json.dumps(request["input"]):
        call = None
    if request.get("text", {}).get("format", {}).get("type") == "json_schema":
        text = json.dumps({"name": word})
    else:
        text = "".join(_parts(order, word))
    yield _typed("response.created", response={"id": "resp_1", "status": "in_progress", "output": []})
    if call:
        item: dict[str, Any] = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": call[0]}
        item["arguments"] = json.dumps(call[1])
    else:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
    yield _typed("response.output_item.done", output_index=0, item=item)
    usage = {
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": COMPLETION_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    }
    yield _typed(
        "response.completed", response={"id": "resp_1", "status": "completed", "output": [item], "usage": usage}
    )


def chat(request: dict[str, Any], order: str, word: str) -> Iterator[str]:
    """Return the stream of an answer of `POST /v1/chat/completions`."""
    tools = [tool["function"]["name"] for tool in request.get("tools", [])]
    call = _call_of(tools, order)
    if order == "tool" and any(message["role"] == "tool" for message in request["messages"]):
        call = None
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}

    def choice(delta: dict[str, Any], reason: str | None = None) -> str:
        return _data({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    if call:
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        calls = [{"index": 0, "id": f"call_{len(request['messages'])}", "type": "function", "function": function}]
        yield choice({"role": "assistant", "content": None, "tool_calls": calls})
    else:
        for part in _parts(order, word):
            yield choice({"role": "assistant", "content": part})
    yield choice({}, "tool_calls" if call else "stop")
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
    yield _data({**chunk, "choices": [], "usage": {**usage, "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS}})
    yield "data: [DONE]\n\n"


def gemini(request: dict[str, Any], order: str, word: str) -> Iterator[str]:
    """Return the stream of an answer of `POST /v1beta/models/MODEL:streamGenerateContent`."""
    tools = [each["name"] for tool in request.get("tools", []) for each in tool.get("functionDeclarations", [])]
    call = _call_of(tools, order)
    if order == "tool" and "functionResponse" in json.dumps(request["contents"]):
        call = None
    parts: list[dict[str, Any]] = [{"text": part} for part in _parts(order, word)]
    if call:
        parts = [{"functionCall": {"name": call[0], "args": call[1]}}]
    for number, part in enumerate(parts or [{"text": ""}], 1):
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}, "index": 0}
        if number >= len(parts):
            candidate["finishReason"] = "STOP"
        usage = {"promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": COMPLETION_TOKENS}
        usage["totalTokenCount"] = PROMPT_TOKENS + COMPLETION_TOKENS
        yield _data({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x"})


def _parts(order: str, word: str) -> list[str]:
    if order == "json":
        return [json.dumps({"name": word})]
    return [] if order == "empty" else ["hello ", word]


ANSWERS = {
    "/messages": anthropic,
    "/responses": responses,
    "/chat/completions": chat,
    ":streamGenerateContent": gemini,
}
