"""A local server that answers as the APIs of OpenAI and Anthropic do, to try code without a key and without cost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from attrs import field, frozen

__all__ = ["ModelRequest", "ModelServer"]


@frozen
class ModelRequest:
    """A request that the server has answered.

    Attributes:
        path: The path of the endpoint, such as `"/v1/chat/completions"`.
        prompt: The text of the last message.
        status: The HTTP status of the answer.
        received: When it came, in seconds of `time.monotonic()`.
    """

    path: str
    prompt: str
    status: int
    received: float = field(factory=time.monotonic)


class ModelServer:
    """Answers `POST /v1/chat/completions` (OpenAI) and `POST /v1/messages` (Anthropic), in a thread, on 127.0.0.1.

    The answer to a prompt is `an answer to` and the prompt. The answer to a request with a JSON Schema is a value that
    is valid under it, if the schema has no more than types, properties and enums. There is no streaming. The server
    ends with `close`, at the end of a `with` block, or with the program.

    Args:
        refuse_every: Each so many-th prompt is refused the first time, with status 429; 0 refuses none.
        retry_after: How many seconds the header `retry-after` of a refusal says.

    Attributes:
        environment (dict[str, str]): With it in `os.environ`, the clients of OpenAI and Anthropic ask this
            server.
        requests (list[ModelRequest]): All requests so far, in order.
    """

    def __init__(self, refuse_every: int = 0, retry_after: int = 1) -> None:
        self.requests: list[ModelRequest] = []
        self._refuse_every = refuse_every
        self._retry_after = retry_after
        self._seen: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self)
        url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "no key",
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "no key",
        }
        threading.Thread(target=self._server.serve_forever, name="model-server", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, path: str, request: Mapping[str, Any]) -> tuple[HTTPStatus, dict[str, str], dict[str, Any]]:
        """Return status, headers and body of the answer to a request; called in the thread of its connection."""
        if path not in _ANSWERS:
            return HTTPStatus.NOT_FOUND, {}, _error("not_found_error", f"no endpoint {path}")
        prompt = _text_of(request["messages"][-1]["content"])
        refused = self._note(path, prompt)
        if refused:
            headers = {"retry-after": str(self._retry_after)}
            return HTTPStatus.TOO_MANY_REQUESTS, headers, _error("rate_limit_error", "too many requests")
        return HTTPStatus.OK, {}, _ANSWERS[path](request, prompt)

    def _note(self, path: str, prompt: str) -> bool:
        """Note a request; return whether it is refused."""
        with self._lock:
            is_new = (path, prompt) not in self._seen
            self._seen.add((path, prompt))
            refused = is_new and self._refuse_every > 0 and len(self._seen) % self._refuse_every == 0
            status = HTTPStatus.TOO_MANY_REQUESTS if refused else HTTPStatus.OK
            self.requests.append(ModelRequest(path, prompt, int(status)))
            return refused


def _text_of(content: Any) -> str:
    """Return the text of a message, which is a string or a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _chat_completion(request: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    wanted = request.get("response_format", {}).get("json_schema")
    text = json.dumps(_example_of(wanted["schema"])) if wanted else f"an answer to {prompt}"
    message = {"role": "assistant", "content": text, "refusal": None}
    prompt_tokens, completion_tokens = len(prompt.split()), len(text.split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _message(request: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    text = f"an answer to {prompt}"
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": len(prompt.split()), "output_tokens": len(text.split())},
    }


_ANSWERS = {"/v1/chat/completions": _chat_completion, "/v1/messages": _message}


def _example_of(schema: Mapping[str, Any]) -> Any:
    """Return a value that is valid under a simple JSON Schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: _example_of(of) for name, of in schema.get("properties", {}).items()}
    examples = {"array": [], "integer": 1, "number": 1.0, "boolean": True, "null": None}
    return examples.get(schema.get("type", "string"), "some text")


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, "param": None, "code": None}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of connections that wait; the system refuses more

    def __init__(self, address: tuple[str, int], model: ModelServer) -> None:
        super().__init__(address, _Handler)
        self.model = model

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client that ends in the middle of a request is none of the server's errors."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as clients expect
    server: _Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, headers, body = self.server.model.answer(self.path, request)
        text = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Print nothing."""
