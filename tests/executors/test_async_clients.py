"""Real async clients, which belong to an event loop, shared by all steps of several runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from scripts import run_python

ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
}


class Handler(BaseHTTPRequestHandler):
    """Answers each request as a chat endpoint does, and keeps its connection open."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


CLIENTS = {
    "openai, in the module": """
from openai import AsyncOpenAI
client = AsyncOpenAI(api_key="x", base_url=URL, max_retries=0)
class Asker(FunctionExecutor):
    pass
async def ask(spec):
    answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": spec.prompt}])
    return answer.choices[0].message.content
make = lambda: Asker({"tester": ask})
""",
    "openai, in a plain setup": """
from openai import AsyncOpenAI
class Asker(FunctionExecutor):
    def setup(self):
        self.client = AsyncOpenAI(api_key="x", base_url=URL, max_retries=0)
    async def ask(self, spec):
        messages = [{"role": "user", "content": spec.prompt}]
        answer = await self.client.chat.completions.create(model="m", messages=messages)
        return answer.choices[0].message.content
    async def teardown(self):
        await self.client.close()
def make():
    executor = Asker()
    executor.register("tester")(executor.ask)
    return executor
""",
    "aiohttp, in a plain setup": """
import aiohttp
class Asker(AgentExecutor):
    def setup(self):
        self.session = aiohttp.ClientSession(URL)
    async def execute_step(self, spec, event_tx=None):
        async with self.session.post("/chat", json={}) as answer:
            message = (await answer.json())["choices"][0]["message"]
        return StepOutcome.completed(spec, message["content"])
    async def teardown(self):
        await self.session.close()
make = Asker
""",
    "aiohttp, in an async setup": """
import aiohttp
class Asker(AgentExecutor):
    async def setup(self):
        self.session = await aiohttp.ClientSession(URL).__aenter__()
    async def execute_step(self, spec, event_tx=None):
        async with self.session.post("/chat", json={}) as answer:
            message = (await answer.json())["choices"][0]["message"]
        return StepOutcome.completed(spec, message["content"])
    async def teardown(self):
        await self.session.close()
make = Asker
""",
}

MODULE = """
import os
from fanout_sync import AgentExecutor, FunctionExecutor, StepOutcome

URL = os.environ["SERVER"]
"""

PROGRAM = """
import sys
from collections import Counter
from asker import make
from fanout_sync import Runner
from fanout_sync.testing import make_specs

# Two workers, because each of them imports the client, which takes long.
bound = 8 if sys.argv[1] == "thread" else 2
with Runner(make(), backend=sys.argv[1], max_concurrency=bound, timeout=60) as runner:
    for _ in range(2):
        print(Counter(outcome.output for outcome in runner.run(make_specs(100))))
"""


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("client", CLIENTS)
def test_one_client_serves_all_steps_of_all_runs(client: str, backend: str, url: str, tmp_path: Path) -> None:
    """A hundred steps, eight at once, in two runs: none finds the loop of the client closed, and none is lost."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    (tmp_path / "asker.py").write_text(MODULE + CLIENTS[client])
    done = run_python(script, backend, environment={"SERVER": url})
    assert (done.stdout, done.stderr) == ("Counter({'hi': 100})\n" * 2, "")
