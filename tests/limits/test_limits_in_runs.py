"""Rate limits and budgets in real runs: on threads and processes, shared, nested, and against a real server."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from attrs import define, field
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    Budget,
    BudgetExhausted,
    EventChannel,
    FunctionExecutor,
    OptionError,
    RateLimit,
    Retry,
    RetryAfter,
    RunEnd,
    Runner,
    StepOutcome,
    SubagentStart,
    current_step,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

pytestmark = pytest.mark.xdist_group("timing")

MakeRunner = Callable[..., Runner]


def _spec(name: str, agent: str = "tester") -> AgentStepSpec:
    return AgentStepSpec(name, agent, "", name)


class Spender(AgentExecutor):
    """Every step uses as many tokens as the name of its agent says, and a thousandth of that in dollars."""

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        current_step().add_usage(prompt_tokens=int(spec.agent), cost_usd=int(spec.agent) / 1000)
        return StepOutcome.completed(spec, spec.prompt)


def _spenders(count: int, tokens: int = 100) -> list[AgentStepSpec]:
    return [_spec(f"s{n}", str(tokens)) for n in range(count)]


# A real server -------------------------------------------------------------------------------------------------------


@define
class ServerLimit:
    """The limit of a provider: at most so many requests in any second; all others get a 429.

    Attributes:
        limit: How many requests.
        accepted: The moment of each accepted request, in seconds of `time.monotonic()`.
        refused: How many requests were refused.
    """

    limit: int
    accepted: list[float] = field(factory=list)
    refused: int = 0
    _recent: deque[float] = field(factory=deque)
    _lock: threading.Lock = field(factory=threading.Lock)

    def accepts(self) -> bool:
        """Count a request that has just come; return whether it is within the limit."""
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0] <= now - 1.0:
                self._recent.popleft()
            if len(self._recent) >= self.limit:
                self.refused += 1
                return False
            self._recent.append(now)
            self.accepted.append(now)
            return True


@pytest.fixture
def server() -> Iterator[tuple[ServerLimit, int]]:
    """A real HTTP server on this machine that takes 60 requests a second."""
    server_limit = ServerLimit(60)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            is_accepted = server_limit.accepts()
            self.send_response(200 if is_accepted else 429)
            if not is_accepted:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *args: object) -> None:
            """Do nothing: the tests look at the `ServerLimit`."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # with the default of 5, connections are accepted a second late

    with Server(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server_limit, http_server.server_address[1]
        http_server.shutdown()
        thread.join(HANG_BOUND_S)


class Client(AgentExecutor):
    """Sends a request to the server, and raises `RetryAfter` if the server says so."""

    def __init__(self, port: int) -> None:
        self.port = port

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_BOUND_S)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status == 429:
            raise RetryAfter(float(answer.headers["Retry-After"]))
        return StepOutcome.completed(spec, text)


def test_a_limit_keeps_the_server_from_refusing(server: tuple[ServerLimit, int]) -> None:
    """300 steps on 16 threads all succeed, and the server refuses five requests at most."""
    server_limit, port = server
    runner = Runner(
        Client(port), max_concurrency=16, rate_limit=RateLimit(requests_per_minute=60 * server_limit.limit), retry=9
    )
    run = runner.run(make_specs(300))
    assert len(run.succeeded) == 300
    assert server_limit.refused <= 5
    assert len(server_limit.accepted) == 300
    for first, later in zip(server_limit.accepted, server_limit.accepted[server_limit.limit :], strict=False):
        assert later - first > 1.0, "by the clock of the server the limit was kept"


def test_a_limit_that_is_set_too_high_costs_few_refusals(server: tuple[ServerLimit, int]) -> None:
    """After a few 429s no step starts: only requests that were in flight by then are refused as well."""
    server_limit, port = server
    runner = Runner(Client(port), max_concurrency=16, rate_limit=RateLimit(requests_per_minute=10**6), retry=20)
    run = runner.run(make_specs(150))
    assert len(run.succeeded) == 150
    assert server_limit.refused <= 3 * 16, "each pause costs at most the requests in flight"


# Rate limits in runs -------------------------------------------------------------------------------------------------


def test_a_step_that_waits_occupies_no_slot(make_runner: MakeRunner, ledger: Ledger) -> None:
    """With one slot, steps of one key run while steps of another key have to wait."""
    limit = RateLimit(requests_per_minute=2, key=lambda spec: spec.prompt[0])
    executor = LedgerExecutor(ledger, concurrency=1)
    specs = [_spec(name) for name in ("a1", "a2", "a3", "a4", "b1", "b2")]
    stream = make_runner(executor, rate_limit=limit, max_concurrency=1).stream(specs, order="completion")
    first_four = [next(stream).task_id for _ in range(4)]
    stream.close()
    assert sorted(first_four) == ["a1", "a2", "b1", "b2"]
    assert set(ledger.counts()) == {"a1", "a2", "b1", "b2"}


def test_a_lazy_input_is_read_on_while_steps_wait(ledger: Ledger) -> None:
    """A generator is read on past steps that wait, up to a bound."""
    limit = RateLimit(requests_per_minute=1, key=lambda spec: spec.prompt[0])
    read: list[str] = []

    def specs() -> Iterator[AgentStepSpec]:
        for n in range(5000):
            read.append(f"a{n}")
            yield _spec(f"a{n}")
            if n == 900:
                yield _spec("b")

    stream = Runner(LedgerExecutor(ledger), rate_limit=limit).stream(specs(), order="completion")
    assert {next(stream).task_id, next(stream).task_id} == {"a0", "b"}
    stream.close()
    assert len(read) < 1200


def test_runners_share_a_limit() -> None:
    """Two runners in two threads that share a limit keep to it together."""
    limit = RateLimit(requests_per_minute=5)
    begun = threading.Semaphore(0)
    starts: list[str] = []

    def step(spec: AgentStepSpec) -> str:
        starts.append(spec.task_id)
        begun.release()
        return "ok"

    executor = FunctionExecutor({"tester": step})
    budget = Budget(max_seconds=0.7)
    threads = [
        threading.Thread(target=Runner(executor, rate_limit=limit, budget=budget).run, args=(make_specs(10),))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert begun.acquire(timeout=HANG_BOUND_S)
    for thread in threads:
        thread.join(HANG_BOUND_S)
    assert len(starts) == 5


def test_retry_after_without_retries_still_begins_a_pause() -> None:
    """The step fails, as it has no attempts left, and the other steps wait."""
    asked: list[str] = []

    def ask(spec: AgentStepSpec) -> str:
        asked.append(spec.task_id)
        if spec.task_id == "t0":
            raise RetryAfter(3600)
        return "ok"

    limit = RateLimit(requests_per_minute=10**6, on_refusal="wait_all")
    runner = Runner(FunctionExecutor({"tester": ask}), max_concurrency=1, rate_limit=limit)
    stream = runner.stream(make_specs(5), order="completion")
    assert next(stream).output.startswith(
        "fanout_sync.RetryAfter: asked to be tried again after 3600 s; not tried again"
    )
    stream.close()
    assert asked == ["t0"]


def test_a_step_that_is_refused_alone_holds_no_other(make_runner: MakeRunner, ledger: Ledger) -> None:
    """It waits as long as its server asked for, and the others end meanwhile."""
    executor = LedgerExecutor(ledger, {"t0": _asks_to_wait_an_hour})
    runner = make_runner(executor, rate_limit=RateLimit(requests_per_minute=10**6), retry=2, max_concurrency=2)
    stream = runner.stream(make_specs(20), order="completion")
    ended = {next(stream).task_id for _ in range(19)}
    stream.close()
    assert ended == {f"t{n}" for n in range(1, 20)}
    assert ledger.counts()["t0"] == 1


def _asks_to_wait_an_hour(spec: AgentStepSpec) -> StepOutcome:
    raise RetryAfter(3600)


def test_every_step_runs_after_a_cooldown(make_runner: MakeRunner, ledger: Ledger) -> None:
    """After a step has raised `RetryAfter`, on threads or in a worker process, every step succeeds in the end."""
    executor = LedgerExecutor(ledger, {"t3": _asks_to_wait_once})
    runner = make_runner(executor, rate_limit=RateLimit(requests_per_minute=10**6), retry=5)
    run = runner.run(make_specs(30))
    assert len(run.succeeded) == 30
    assert len(run.records[3].attempts) == 2


def _asks_to_wait_once(spec: AgentStepSpec) -> StepOutcome:
    if current_step().attempt == 1:
        raise RetryAfter(0.05)
    return StepOutcome.completed(spec, "at last")


def test_a_key_function_that_raises_fails_only_its_step(ledger: Ledger) -> None:
    """A step fails if the key function raises, or returns no string; the other steps run."""

    def key(spec: AgentStepSpec) -> str:
        if spec.task_id == "t1":
            raise LookupError("no such provider")
        return 3 if spec.task_id == "t2" else "fine"  # type: ignore[return-value]  # that is the point

    run = Runner(LedgerExecutor(ledger), rate_limit=RateLimit(requests_per_minute=1000, key=key)).run(make_specs(4))
    assert [outcome.success for outcome in run] == [True, False, False, True]
    assert run[1].output == "LookupError: no such provider"
    assert "key of RateLimit must return a str, got int 3" in run[2].output


def test_a_run_that_was_left_releases_what_its_steps_held(ledger: Ledger) -> None:
    """Another run under the same limit and budget does not wait for steps that were abandoned."""
    budget = Budget(max_tokens=1000)
    limit = RateLimit(tokens_per_minute=10**6)
    stream = Runner(Spender(), rate_limit=limit, budget=budget, max_concurrency=2).stream(_spenders(50))
    next(stream)
    stream.close()
    assert Runner(Spender(), rate_limit=limit, budget=budget).run(_spenders(1)).succeeded


def test_nested_runs_share_a_limit_and_a_budget_without_a_deadlock() -> None:
    """A run within a step does not wait for that step, although it is the first step of its agent."""
    limit, budget = RateLimit(requests_per_minute=10**5, tokens_per_minute=10**6), Budget(max_tokens=10**6)
    inner = Runner(Spender(), rate_limit=limit, budget=budget)

    def outer(spec: AgentStepSpec) -> str:
        return str(len(inner.run(_spenders(5)).succeeded))

    run = Runner(FunctionExecutor({"tester": outer}), rate_limit=[limit], budget=budget).run(make_specs(4))
    assert [outcome.output for outcome in run] == ["5"] * 4
    assert budget.used.tokens == 4 * 5 * 100


def test_a_nested_run_without_the_budget_leaves_the_reservation_as_it_is() -> None:
    """What is set aside for a step is released only if it starts a run under the same limit or budget."""
    budget = Budget(max_tokens=1000)
    free = Runner(FunctionExecutor({"tester": lambda spec: "free"}))

    def outer(spec: AgentStepSpec) -> str:
        free.run(make_specs(1))
        current_step().add_usage(prompt_tokens=300)
        return "ok"

    run = Runner(FunctionExecutor({"tester": outer}), budget=budget, max_concurrency=9).run(make_specs(9))
    assert len(run.succeeded) == 3
    assert budget.used.tokens == 900


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_stream_that_is_not_read_makes_no_other_run_wait(backend: Any) -> None:
    """What its steps held is released when they end, although nobody takes their outcomes."""
    limit, budget = RateLimit(tokens_per_minute=10**6), Budget(max_tokens=10**6)
    paused = Runner(Spender(), backend=backend, rate_limit=limit, budget=budget, max_concurrency=2).stream(
        iter(_spenders(9))
    )
    next(paused)
    other = Runner(Spender(), rate_limit=limit, budget=budget).run([*_spenders(3), _spec("x", "7")])
    assert len(other.succeeded) == 4
    assert len(list(paused)) == 8


def test_usage_of_abandoned_threads_counts() -> None:
    """What the threads of timed-out steps report after the run has ended counts for the budget."""
    budget = Budget(max_tokens=10**6, estimate=lambda spec: 1)
    go_on, is_reported = threading.Event(), threading.Semaphore(0)

    def late(spec: AgentStepSpec) -> str:
        assert go_on.wait(HANG_BOUND_S)
        current_step().add_usage(prompt_tokens=100)
        is_reported.release()
        return "ok"

    stream = Runner(FunctionExecutor({"tester": late}), budget=budget, timeout=0.1, max_concurrency=2).stream(
        make_specs(2)
    )
    assert not next(stream).success
    stream.close()
    go_on.set()
    for _ in range(2):
        assert is_reported.acquire(timeout=HANG_BOUND_S)
    assert budget.used.tokens == 200


# Budgets in runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_budget_is_not_exceeded(backend: Any, concurrency: int) -> None:
    """However many steps are in flight, the limit is not exceeded if all steps use the same."""
    budget = Budget(max_tokens=1050)
    events: list[Any] = []
    with EventChannel() as channel:
        channel.listen(events.append)
        runner = Runner(Spender(), backend=backend, budget=budget, max_concurrency=concurrency, event_tx=channel)
        run = runner.run(_spenders(40))
    assert len(run.succeeded) == 10
    assert budget.used.tokens == 1000
    assert [record.status for record in run.records].count("cancelled") == 30
    told = "budget exhausted: 1000 of 1050 tokens used, which leaves too little for another step"
    assert {outcome.output for outcome in run.failed} == {told}
    assert run.failed[0].agent == "100"
    exhausted = [event for event in events if isinstance(event, BudgetExhausted)]
    assert exhausted == [BudgetExhausted("tokens", 1050, 1000)]
    assert len([event for event in events if isinstance(event, SubagentStart)]) == 10
    assert isinstance(events[-1], RunEnd)
    assert (events[-1].succeeded, events[-1].failed, events[-1].cancelled) == (10, 0, 30)
    assert "budget: 1000 of 1050 tokens" in run.summary()


def test_a_budget_is_exceeded_by_one_step_at_most(make_runner: MakeRunner) -> None:
    """With agents of different cost, only the first step of an agent, which runs alone, may use more than is left."""
    budget = Budget(max_cost_usd=1.0)
    specs = [_spec(f"s{n}", str(10 * (1 + n % 7))) for n in range(200)]
    run = make_runner(Spender(), budget=budget, max_concurrency=16).run(specs)
    assert run.succeeded
    assert run.failed
    assert budget.used.cost_usd <= 1.0 + 0.07
    assert budget.used.cost_usd > 0.8


def test_with_an_estimate_the_first_steps_run_together(ledger: Ledger) -> None:
    """With an estimate from the caller, the first step of an agent does not run alone."""
    together = threading.Barrier(5, timeout=HANG_BOUND_S)

    def spend(spec: AgentStepSpec) -> str:
        together.wait()
        current_step().add_usage(prompt_tokens=10)
        return "ok"

    budget = Budget(max_tokens=50, estimate=lambda spec: 10)
    run = Runner(FunctionExecutor({"tester": spend}), max_concurrency=16, budget=budget).run(make_specs(8))
    assert len(run.succeeded) == 5
    assert budget.used.tokens == 50


def test_max_steps_limits_how_many_steps_start(make_runner: MakeRunner, ledger: Ledger) -> None:
    """Exactly `max_steps` steps start; another attempt at one of them does not count."""
    executor = LedgerExecutor(ledger, {"t1": _asks_to_wait_once})
    run = make_runner(executor, budget=Budget(max_steps=4), retry=3).run(make_specs(9))
    assert [outcome.task_id for outcome in run.succeeded] == ["t0", "t1", "t2", "t3"]
    assert ledger.counts() == {"t0": 1, "t1": 2, "t2": 1, "t3": 1}
    assert run[4].output == "budget exhausted: 4 of 4 steps used"


@pytest.mark.parametrize("limit", [{"requests_per_minute": 1}, {"tokens_per_minute": 500}])
def test_a_budget_that_is_used_up_ends_the_wait_for_a_limit(limit: dict[str, Any]) -> None:
    """When the budget is used up, steps that wait for a rate limit are cancelled at once."""
    runner = Runner(Spender(), rate_limit=RateLimit(**limit), budget=Budget(max_tokens=900), max_concurrency=2)
    run = runner.run(_spenders(3, 1000))
    assert [record.status for record in run.records] == ["succeeded", "cancelled", "cancelled"]
    assert run[1].output == "budget exhausted: 1000 of 900 tokens used"


def test_max_seconds_ends_a_run(make_runner: MakeRunner) -> None:
    """When the time is used up, steps in flight finish, and no other step starts."""
    release = threading.Event()
    threading.Timer(0.4, release.set).start()
    run = make_runner(FunctionExecutor({"tester": _sleep}), budget=Budget(max_seconds=0.2), max_concurrency=2).run(
        [_spec(f"0.3-{n}") for n in range(20)]
    )
    assert 2 <= len(run.succeeded) <= 4
    assert all("budget exhausted: " in outcome.output for outcome in run.failed)
    assert release.wait(HANG_BOUND_S)


def _sleep(spec: AgentStepSpec) -> str:
    time.sleep(float(spec.prompt.partition("-")[0]))
    return "ok"


def test_max_seconds_ends_the_wait_for_retries_and_limits() -> None:
    """When the time is used up, the run does not wait for a retry that is due in an hour, nor for a rate limit."""

    def fail(spec: AgentStepSpec) -> str:
        raise ValueError("busy")

    runner = Runner(FunctionExecutor({"tester": fail}), budget=Budget(max_seconds=0.2), retry=Retry(3, wait=3600))
    run = runner.run(make_specs(1))
    assert run.records[0].status == "cancelled"
    assert run[0].output.startswith("budget exhausted: ")
    assert run[0].output.endswith("; attempt 1: ValueError: busy")
    limit = RateLimit(requests_per_minute=1)
    run = Runner(FunctionExecutor({"tester": lambda spec: "ok"}), rate_limit=limit, budget=Budget(max_seconds=0.2)).run(
        make_specs(2)
    )
    assert [outcome.success for outcome in run] == [True, False]


def test_a_budget_lasts_over_runs_and_rounds() -> None:
    """Several runs and the rounds of a loop share a budget, and the loop ends when it is used up."""
    budget = Budget(max_tokens=450)
    runner = Runner(Spender(), budget=budget)
    assert len(runner.run(_spenders(2)).succeeded) == 2
    from fanout_sync import Continue

    rounds = 0

    def again(outcomes: Any) -> Continue:
        nonlocal rounds
        rounds += 1
        return Continue(_spenders(1))

    outcomes = runner.loop(_spenders(1), 100, again)
    assert rounds == 2
    assert [outcome.success for outcome in outcomes] == [False]
    assert budget.used.tokens == 400


def test_an_estimate_that_raises_fails_only_its_step() -> None:
    """A step fails if `estimate` raises for it; the other steps run."""

    def estimate(spec: AgentStepSpec) -> float:
        if spec.task_id == "s1":
            raise LookupError("no price")
        return 100

    run = Runner(Spender(), budget=Budget(max_tokens=10**6, estimate=estimate)).run(_spenders(3))
    assert [outcome.success for outcome in run] == [True, False, True]
    assert run[1].output == "LookupError: no price"


def test_usage_that_is_reported_to_event_tx_counts() -> None:
    """With a budget, executors get an `event_tx` although nobody listens to events, so that no usage is lost."""

    def spend(spec: AgentStepSpec, event_tx: Any) -> str:
        event_tx.usage(prompt_tokens=5)
        event_tx.send(BudgetExhausted("tokens", 1, 1))
        return "ok"

    for backend in ("thread", "process"):
        budget = Budget(max_tokens=100)
        run = Runner(FunctionExecutor({"tester": spend}), budget=budget, backend=backend).run(make_specs(3))
        assert len(run.succeeded) == 3
        assert budget.used.tokens == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_limit": 60}, "rate_limit must be a RateLimit or a list of them, got int 60"),
        ({"rate_limit": [RateLimit(5), None]}, "rate_limit must be a RateLimit or a list of them, got None"),
        ({"budget": 5.0}, r"budget must be a Budget, such as Budget\(max_cost_usd=5\), got float 5.0"),
    ],
)
def test_unusable_options_are_named(options: dict[str, Any], message: str) -> None:
    """What is no limit or no budget is refused when the runner is made, and the message names the option."""
    with pytest.raises(OptionError, match=message):
        Runner(Spender(), **options)


def test_an_executor_with_a_limit_is_refused_by_worker_processes() -> None:
    """An executor that has a limit cannot be sent to a worker process, and the error says which attribute it is."""
    from fanout_sync import ExecutorNotPicklable

    class Greedy(Spender):
        def __init__(self) -> None:
            self.limit = RateLimit(requests_per_minute=1)

    with pytest.raises(ExecutorNotPicklable, match=r"executor.limit .*a RateLimit lives in one process"):
        Runner(Greedy(), backend="process").run(_spenders(1))
