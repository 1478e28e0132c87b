"""A local imitation of an OpenAI-compatible server that has faults, and counts what was asked and what was paid."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

from bounds import HANG_BOUND_S

REFUSED, BROKEN, HANGS = "refused", "broken", "hangs"
SHARES = {REFUSED: 0.05, BROKEN: 0.05, HANGS: 0.01}
"""The share of the prompts that have each fault."""

RETRY_AFTER_S = 1
LATENCY_S = (0.1, 0.3)
"""From when to when an answer comes."""


class ChatServer(ThreadingHTTPServer):
    """Answers each prompt with `answer_to` it; on some of them, the same for each seed, it fails once or twice first.

    Attributes:
        asked: How often it was asked each prompt.
        paid: How often it has sent the whole answer to each prompt, with the status 200, read or not.
        planned: How many faults there are.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, prompts: list[str], seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = Counter[str]()
        self.paid = Counter[str]()
        self._faults = _faults(prompts, Random(seed))
        self.planned = self.faults_left
        self._seed = seed
        self._in_hand = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()

    @property
    def url(self) -> str:
        """What to give the SDK as its base URL."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def faults_left(self) -> int:
        """How many faults have not come up yet."""
        return sum(map(len, self._faults.values()))

    def until(self, condition: Callable[[], bool], bound_s: float = HANG_BOUND_S) -> None:
        """Wait until `condition` holds, which is looked at after each answer, and ten times a second.

        Raises:
            TimeoutError: It does not hold within `bound_s` seconds.
        """
        deadline = time.monotonic() + bound_s
        with self._changed:
            while not condition():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the server has had {self.asked.total()} requests in {bound_s} s")
                self._changed.wait(0.1)

    def until_idle(self) -> None:
        """Wait until every request has its answer, but for those that hang."""
        self.until(lambda: self._in_hand == 0)

    def close(self) -> None:
        """End the requests that hang, and close the socket."""
        self._closing.set()
        self.shutdown()
        self.server_close()

    def handle_prompt(self, prompt: str, send: Callable[[HTTPStatus, dict[str, Any]], None]) -> None:
        """Answer, refuse, fail or hang."""
        with self._changed:
            self.asked[prompt] += 1
            fault = self._faults[prompt].pop() if self._faults.get(prompt) else None
            self._in_hand += 1
        is_paid = False
        try:
            if fault != HANGS:
                time.sleep(Random(f"{self._seed} {prompt}").uniform(*LATENCY_S))
                send(*_response(prompt, fault))
                is_paid = fault is None
        finally:
            with self._changed:
                self.paid[prompt] += is_paid
                self._in_hand -= 1
                self._changed.notify_all()
        if fault == HANGS:
            self._closing.wait()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: it is part of the job that programs are killed while they wait for an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are sent at once: an answer counts as sent also if its reader was killed just before, as it would be
    # billed. In two parts, the second one would fail.
    wbufsize = -1
    server: ChatServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.handle_prompt(request["messages"][-1]["content"], self._send)

    def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def chat_server(prompts: list[str], seed: int) -> Iterator[ChatServer]:
    """Serve in threads of this process."""
    server = ChatServer(prompts, seed)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(HANG_BOUND_S)


def answer_to(prompt: str) -> str:
    """Return what the server answers."""
    return f"{prompt} {len(prompt)}"


def _faults(prompts: list[str], chance: Random) -> dict[str, list[str]]:
    faulty = chance.sample(prompts, sum(_count(share, prompts) for share in SHARES.values()))
    kinds = [kind for kind, share in SHARES.items() for _ in range(_count(share, prompts))]
    return {
        prompt: [kind] * (1 if kind == HANGS else chance.randint(1, 2))
        for prompt, kind in zip(faulty, kinds, strict=True)
    }


def _count(share: float, prompts: list[str]) -> int:
    return max(1, round(share * len(prompts)))


def _response(prompt: str, fault: str | None) -> tuple[HTTPStatus, dict[str, Any]]:
    if fault == REFUSED:
        error = {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
        return HTTPStatus.TOO_MANY_REQUESTS, {"error": error}
    if fault == BROKEN:
        error = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
        return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": error}
    message = {"role": "assistant", "content": answer_to(prompt)}
    return HTTPStatus.OK, {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "imitation",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": 2, "total_tokens": len(prompt) + 2},
    }
