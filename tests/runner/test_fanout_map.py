"""`fanout_map` and `fanout_stream`: a function over items, without specs."""

from __future__ import annotations

import array
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs
import misdeeds
import pytest
from bounds import HANG_BOUND_S
from scripts import run_python

from fanout_sync import (
    AgentStepSpec,
    EventChannel,
    FunctionExecutor,
    InputError,
    JournalConflict,
    MemoryJournal,
    OptionError,
    RateLimit,
    Retry,
    Run,
    StepOutcome,
    SubagentEnd,
    UnknownOption,
    current_step,
    fanout_map,
    fanout_stream,
)
from fanout_sync.testing import Ledger

Backend = Any


@pytest.fixture(params=["thread", "process", "pool"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from _backends(request.param)


@pytest.fixture(params=["process", "pool"])
def process_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from _backends(request.param)


def _backends(name: str) -> Iterator[Backend]:
    if name == "pool":
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool
    else:
        yield name


@attrs.frozen
class Document:
    name: str
    text: str


def _words(document: Document) -> list[str]:
    assert isinstance(document, Document)
    return document.text.split()


def _prompt(item: object) -> str:
    return current_step().spec.prompt


def _shown(item: object) -> str:
    return repr(item)


def _values(run: Run) -> list[Any]:
    return [outcome.output if outcome.structured is None else outcome.structured for outcome in run]


# What a function gets, and what becomes of what it returns ------------------------------------------------------------


def test_the_function_gets_the_item_itself(backend: Backend) -> None:
    """Whatever the items are, the function gets them, and the outcomes come in their order."""
    documents = [Document(f"d{n}", "word " * n) for n in range(5)]
    run = fanout_map(_words, documents, backend=backend, max_concurrency=2)
    assert _values(run) == [["word"] * n for n in range(5)]
    assert [outcome.task_id for outcome in run] == ["0", "1", "2", "3", "4"]
    assert [record.status for record in run.records] == ["succeeded"] * 5


def test_on_threads_it_is_the_very_object() -> None:
    """Items are not copied on threads."""
    items = [object() for _ in range(3)]
    seen: dict[str, object] = {}
    assert len(fanout_map(lambda item: seen.setdefault(current_step().spec.task_id, item) and None, items)) == 3
    assert [seen[str(index)] is item for index, item in enumerate(items)] == [True] * 3


def test_builtins_arrive_as_they_are(process_backend: Backend) -> None:
    """What consists of builtins is the same in another process."""
    items = [1, "é", 2.5, None, True, b"bytes", (1, (2,)), {1, 2}, {"a": [1]}, {1: frozenset()}, 1j, range(3), len]
    assert [outcome.output for outcome in fanout_map(_shown, items, backend=process_backend)] == list(map(repr, items))


async def _twice(item: int) -> int:
    return 2 * item


def test_an_async_function(backend: Backend) -> None:
    """The coroutine of an `async def` is run to its end."""
    assert _values(fanout_map(_twice, [1, 2, 3], backend=backend)) == [2, 4, 6]


def test_a_returned_outcome_is_passed_on() -> None:
    """A `StepOutcome` is the outcome, and a value that JSON cannot carry a failed one."""
    refused = StepOutcome.failed("0", "ask", "not today")
    assert fanout_map(lambda item: refused, ["a"])[0] == refused
    assert len(fanout_map(lambda item: object(), ["a"]).failed) == 1


def test_the_spec_of_a_step(backend: Backend) -> None:
    """The prompt is the item if that is a `str`, else its JSON, else its `repr`, wherever the step runs."""
    run = fanout_map(_prompt, ["text", {"b": 1, "a": "é"}, 3, Document("d", "t"), (1, 2)], backend=backend)
    assert [outcome.output for outcome in run] == [
        *("text", '{"b":1,"a":"é"}', "3"),
        *("Document(name='d', text='t')", "(1, 2)"),
    ]


class Unprintable:
    def __repr__(self) -> str:
        raise AssertionError("nobody has asked for it")


def test_no_prompt_is_made_unless_somebody_asks() -> None:
    """The JSON or the `repr` of an item may be long: a step that does not look at it does not pay for it."""
    run = fanout_map(lambda item: "done", [Unprintable()], event_tx=EventChannel())
    assert [record.status for record in run.records] == ["succeeded"]
    assert fanout_map(_prompt, [Unprintable()])[0].output.startswith("Unprintable <Unprintable instance at")


def test_a_copy_of_the_spec_is_a_plain_spec(backend: Backend) -> None:
    """A step may make other specs of its own one; they have no item."""
    assert fanout_map(_copies, [{"a": 1}], backend=backend)[0].output == '{"a":1} 3 AgentStepSpec AgentStepSpec'


def _copies(item: Any) -> str:
    spec = current_step().spec
    evolved, fewer = attrs.evolve(spec, agent="other"), spec.with_max_steps(3)
    assert AgentStepSpec.from_json(spec.to_json()) == attrs.evolve(spec)
    return f"{evolved.prompt} {fewer.max_steps} {type(evolved).__name__} {type(fewer).__name__}"


# Items that cannot be sent --------------------------------------------------------------------------------------------


class WithLock:
    def __init__(self) -> None:
        self.lock = threading.Lock()


class RaisesWhenLoaded:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('not here')",)


def test_an_item_that_cannot_be_pickled_fails_its_own_step(process_backend: Backend) -> None:
    """The outcome names the item and what is wrong with it; the other steps run."""
    run = fanout_map(_shown, [1, {"inner": WithLock()}, 3, misdeeds.Unpicklable()], backend=process_backend)
    assert [record.status for record in run.records] == ["succeeded", "invalid", "succeeded", "invalid"]
    assert run[1].output.startswith("items[1]['inner'].lock cannot be sent to another process: it is a lock (TypeErr")
    assert "items[3] cannot be sent to another process" in run[3].output
    assert [outcome.task_id for outcome in run] == ["0", "1", "2", "3"]


def test_an_item_that_cannot_be_unpickled_fails_its_own_step(process_backend: Backend) -> None:
    """Whatever unpickling raises, `SystemExit` too, ends the step and not its worker."""
    run = fanout_map(_shown, [1, RaisesWhenLoaded(), 3], backend=process_backend, max_concurrency=1)
    assert [record.status for record in run.records] == ["succeeded", "raised", "succeeded"]
    assert "the item was pickled, but cannot be unpickled here: SystemExit: not here" in run[1].output


def test_an_item_whose_unpickling_kills_its_worker() -> None:
    """Only its own step crashes."""
    run = fanout_map(_shown, [1, misdeeds.KillsItsLoader(), 3], backend="process", max_concurrency=1)
    assert [record.status for record in run.records] == ["succeeded", "crashed", "succeeded"]


def test_a_list_that_is_nested_too_deeply() -> None:
    """What even `pickle` cannot follow fails its own step."""
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    run = fanout_map(lambda item: "done", [nested, 1], backend="process")
    while nested:
        nested = nested.pop()  # or Python frees it by recursion
    assert [record.status for record in run.records] == ["invalid", "succeeded"]
    assert "items[0]" in run[0].output


SCRIPT = """
import functools, os, sys
from dataclasses import dataclass
from fanout_sync import fanout_map

COUNT = {"calls": 0}
SHARED = [0]
MISSING = object()

@dataclass
class Point:
    x: int
    def count(self):
        COUNT["calls"] += 1
        return COUNT["calls"]

class Unused:
    def answer(self):
        return helper()

def helper():
    return 42

def count(point):
    assert type(point) is Point and isinstance(point, Point)
    return [point.x, point.count()]

def changing():
    for number in range(3):
        SHARED[0] = number
        yield SHARED

def local():
    class Local:
        value = 7
    return Local()

backend = sys.argv[1]
if backend == "pool":
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    backend = ProcessPoolExecutor(1, mp_context=get_context("fork"))
elif backend == "loky":
    from loky import ProcessPoolExecutor
    backend = ProcessPoolExecutor(1)
options = {"backend": backend, "max_concurrency": 1}

def outputs(function, items):
    return [outcome.output for outcome in fanout_map(function, items, **options)]

print(outputs(count, [Point(n) for n in range(3)]))
print(outputs(lambda item: item[0], changing()))
print(outputs(lambda item: item.answer(), [Unused()]))
print(outputs(lambda item: item is MISSING, [MISSING, object()]))
print(outputs(lambda item: item(2), [lambda n: n + helper(), functools.partial(pow, 3)]))
print(outputs(lambda item: item.value, [local(), local()]))
if not isinstance(backend, str):
    backend.shutdown()
"""


@pytest.mark.parametrize("backend", ["process", "pool", "loky"])
def test_items_of_a_script(tmp_path: Path, backend: str) -> None:
    """Items may be of classes of `__main__`; globals of a worker stay as its steps have left them."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = run_python("-W", "ignore::DeprecationWarning", path, backend)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['[0,1]', '[1,2]', '[2,3]']",
        "['0', '1', '2']",
        "['42']",
        "['true', 'false']",
        "['44', '9']",
        "['7', '7']",
    ]


# Names ----------------------------------------------------------------------------------------------------------------


class Asker:
    def __call__(self, item: object) -> str:
        return "asked"

    def ask(self, item: object) -> str:
        return "asked"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (_shown, "_shown"),
        (functools.partial(functools.partial(pow, 2)), "pow"),
        (Asker(), "Asker"),
        (Asker().ask, "ask"),
        (lambda item: "", "<lambda>"),
        (str, "str"),
        (functools.lru_cache(_shown), "_shown"),
    ],
)
def test_the_agent_is_the_function(function: Callable[[Any], Any], name: str) -> None:
    """By default the agent has the name of the function, or of the class of a callable object."""
    assert fanout_map(function, [3])[0].agent == name
    assert fanout_map(function, [3], agent="mine")[0].agent == "mine"


def test_names_of_steps() -> None:
    """`task_id` gets each item and its index."""
    documents = [Document("a", ""), Document("b", "")]
    run = fanout_map(_words, documents, task_id=lambda document, index: f"{document.name}-{index}")
    assert [outcome.task_id for outcome in run] == ["a-0", "b-1"]


def test_a_name_that_is_no_text() -> None:
    """The error says which item got it; of an iterator it has the steps before, of a list none has run."""

    def name(item: str, index: int) -> Any:
        return index or "zero"

    ways: list[tuple[Callable[..., Any], Any, list[str]]] = [
        (fanout_map, ["a", "b"], []),
        (fanout_map, iter(["a", "b"]), ["zero"]),
        (lambda *args, **options: list(fanout_stream(*args, **options)), ["a", "b"], []),
    ]
    for run, items, done in ways:
        with pytest.raises(InputError) as got:
            run(_shown, items, task_id=name)
        assert str(got.value) == "task_id(items[1], 1) must return a str, got int 1"
        assert [outcome.task_id for outcome in got.value.run] == done


@pytest.mark.parametrize("journal", [None, MemoryJournal()], ids=["plain", "journal"])
def test_a_name_that_raises(journal: Any) -> None:
    """What `task_id` raised is the cause of the error, which names the item."""
    rows = [{"id": 1}, {"name": 1}]
    for items in (rows, iter(rows), deque(rows)):
        with pytest.raises(InputError) as got:
            fanout_map(_shown, items, task_id=lambda item, index: str(item["id"]), journal=journal)
        assert str(got.value) == "task_id(items[1], 1) raised KeyError: 'id'"
        assert isinstance(got.value.__cause__, KeyError)
    with pytest.raises(InputError, match=r"task_id\(items\[1\], 1\) raised KeyError: 'id'"):
        list(fanout_stream(_shown, iter(rows), task_id=lambda item, index: str(item["id"])))


@pytest.mark.parametrize("run", [fanout_map, fanout_stream])
def test_a_task_id_of_other_arguments_is_refused(run: Callable[..., Any]) -> None:
    """At once, with what it must take; what cannot be looked at is called."""
    with pytest.raises(OptionError) as got:
        run(_shown, iter([1]), task_id=lambda item: str(item))
    assert str(got.value) == "task_id must take (item, index), but its signature is (item)"
    with pytest.raises(OptionError, match="task_id must take"):
        run(_shown, [1], task_id=functools.partial(lambda prefix, item: "", "p"))
    assert [each.task_id for each in run(_shown, ["ab"], task_id=lambda *both: both[0])] == ["ab"]


def test_an_order_is_for_streams() -> None:
    """`fanout_map` says whose option it is."""
    with pytest.raises(UnknownOption, match="order is an option of fanout_stream"):
        fanout_map(_shown, [1], order="completion")  # type: ignore[call-arg]  # the mistake


# Items ----------------------------------------------------------------------------------------------------------------


def test_any_iterable() -> None:
    """Generators, sets, dictionaries (their keys), arrays and tuples are items; there may be none."""
    for items in ((n for n in range(3)), {0, 1, 2}, {0: "a", 1: "b", 2: "c"}, array.array("i", range(3)), (0, 1, 2)):
        assert _values(fanout_map(abs, items)) == [0, 1, 2]
    assert len(fanout_map(abs, [])) == 0


@pytest.mark.parametrize("items", ["a question", b"bytes"])
def test_one_text_is_no_list_of_items(items: Any) -> None:
    """A text would be one step for each character, which nobody means."""
    with pytest.raises(InputError, match=r"items must be an iterable of items, got .*put it into a list"):
        fanout_map(_shown, items)
    with pytest.raises(InputError, match="put it into a list"):
        fanout_stream(_shown, items)


def test_what_is_no_iterable() -> None:
    """The error says what came in the place of the items."""
    with pytest.raises(InputError, match="items must be an iterable, got int 3"):
        fanout_map(_shown, 3)  # type: ignore[arg-type]  # the mistake


def test_items_that_raise() -> None:
    """If the iterator raises, the steps before it are in the error's run."""

    def items() -> Iterator[int]:
        yield from (1, 2)
        raise LookupError("the server is gone")

    with pytest.raises(InputError, match="the input raised after 2 specs: LookupError: the server is gone") as got:
        fanout_map(abs, items())
    assert _values(got.value.run) == [1, 2]  # type: ignore[arg-type]  # it is a run


def test_an_endless_stream(backend: Backend) -> None:
    """A stream reads as many items as there is room for, and its outcomes come in their order."""
    read = itertools.count()
    outcomes = fanout_stream(abs, read, backend=backend, max_concurrency=2)
    assert [next(outcomes).structured for _ in range(5)] == [0, 1, 2, 3, 4]
    outcomes.close()
    assert next(read) < 300


def test_a_stream_in_the_order_of_completion() -> None:
    """With `order="completion"` a fast step overtakes a slow one."""
    gate = threading.Event()

    def wait(item: str) -> str:
        assert item == "fast" or gate.wait(HANG_BOUND_S)
        return item

    outcomes = fanout_stream(wait, ["slow", "fast"], order="completion")
    assert next(outcomes).output == "fast"
    gate.set()
    assert [outcome.output for outcome in outcomes] == ["slow"]


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [fanout_map, fanout_stream])
def test_arguments_that_nobody_can_mean(run: Callable[..., Any]) -> None:
    """They are refused at once, by name."""
    with pytest.raises(OptionError, match="function must be a function of one item, got str 'ask'"):
        run("ask", [1])
    with pytest.raises(OptionError, match="function must be a function of one item, got FunctionExecutor"):
        run(FunctionExecutor({}), [1])
    with pytest.raises(OptionError, match=r"function must take one item, but its signature is \(spec, event_tx\)"):
        run(lambda spec, event_tx: "", [1])
    with pytest.raises(OptionError, match="task_id must be a function of an item and its index, got str 'id'"):
        run(_shown, [1], task_id="id")
    with pytest.raises(OptionError, match="agent must be a str, got int 3"):
        run(_shown, [1], agent=3)
    with pytest.raises(
        UnknownOption, match=rf"{run.__name__} has no option 'n_jobs' \(did you mean max_concurrency\?\)"
    ):
        run(_shown, [1], n_jobs=3)
    with pytest.raises(OptionError, match="timeout"):
        run(_shown, [1], timeout=-1)


def test_an_unknown_order() -> None:
    """The order is checked at once."""
    with pytest.raises(OptionError, match="order must be 'input' or 'completion'"):
        fanout_stream(_shown, [1], order="random")  # type: ignore[arg-type]  # the mistake


def test_retries_and_events() -> None:
    """Options of the runner apply: a step is tried again, and its events have its name."""
    channel, tries = EventChannel(), itertools.count()
    received = channel.subscribe()

    def flaky(item: str) -> str:
        if next(tries) == 0:
            raise ConnectionError(item)
        return item

    run = fanout_map(flaky, ["a"], retry=Retry(attempts=3, wait=0), event_tx=channel, agent="flaky")
    assert [len(record.attempts) for record in run.records] == [2]
    channel.close()
    ends = [event for event in received if isinstance(event, SubagentEnd)]
    assert [(event.task_id, event.agent, event.success) for event in ends] == [("0", "flaky", True)]


def test_limits_get_the_spec() -> None:
    """`key` of a rate limit is asked with a spec whose prompt stands for the item."""
    asked = []

    def key(spec: AgentStepSpec) -> str:
        asked.append(spec.prompt)
        return spec.agent

    fanout_map(_shown, [{"a": 1}, "b"], rate_limit=RateLimit(60_000, key=key))
    assert sorted(asked) == ["b", '{"a":1}']


def test_at_most_eight_at_once() -> None:
    """The bound is that of a `FunctionExecutor`, unless `max_concurrency` says otherwise."""
    barrier = threading.Barrier(8)
    assert fanout_map(lambda item: barrier.wait(HANG_BOUND_S) >= 0, range(8)).failed == []
    lock, most = threading.Lock(), [0, 0]

    def busy(item: int) -> str:
        with lock:
            most[0] += 1
            most[1] = max(most)
        with lock:
            most[0] -= 1
        return ""

    fanout_map(busy, range(100))
    assert most[1] <= 8


# Journals -------------------------------------------------------------------------------------------------------------


def _noted(ledger: Ledger) -> Callable[[Any], str]:
    def note(item: Any) -> str:
        ledger.note(current_step().spec.task_id)
        return "noted"

    return note


ITEMS = ["text", {"b": 1, "a": [2.5]}, 3, None, Document("d", "t"), ("a", frozenset("xyz")), b"\xff"]


@pytest.mark.parametrize("items", [ITEMS, iter(ITEMS)], ids=["list", "iterator"])
def test_what_is_journalled_is_not_run_again(ledger: Ledger, tmp_path: Path, items: Any) -> None:
    """A step is found again by its name and its item, be that JSON or not."""
    journal = tmp_path / "run.db"
    fanout_map(_noted(ledger), items, agent="note", journal=journal)
    again = fanout_map(_noted(ledger), [*ITEMS[:1], {"a": [2.5], "b": 1}, *ITEMS[2:]], agent="note", journal=journal)
    assert [record.from_journal for record in again.records] == [True] * len(ITEMS)
    assert set(ledger.counts().values()) == {1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1", 1),
        ([1], ["1"]),
        ({"a": 1}, {"a": 2}),
        (Document("d", "t"), Document("d", "T")),
        ((1,), [1]),
        (b"a", "b'a'"),
    ],
)
def test_another_item_under_the_same_name_is_refused(before: Any, after: Any) -> None:
    """The journalled outcome is that of another item, also if both have the same prompt; or the step runs again."""
    journal = MemoryJournal()
    fanout_map(_shown, [before], journal=journal)
    with pytest.raises(JournalConflict) as got:
        fanout_map(_shown, [after], journal=journal)
    assert got.value.conflicts in ({"0": ("item",)}, {"0": ("prompt",)})
    (outcome,) = fanout_map(_shown, [after], journal=journal, on_conflict="rerun")
    assert outcome.output == repr(after)


@pytest.mark.parametrize("item", ["text", {"a": 1}, Document("d", "t")])
def test_the_same_item_for_another_agent(item: Any) -> None:
    """Only the agent differs, and the advice says how to keep it."""
    journal = MemoryJournal()
    fanout_map(_shown, [item], journal=journal)
    with pytest.raises(JournalConflict) as got:
        fanout_map(_prompt, [item], journal=journal)
    assert got.value.conflicts == {"0": ("agent",)}
    assert "Give agent='_shown' if it is the same function under another name" in str(got.value)
    assert "task_id=" in str(got.value)
    assert fanout_map(_prompt, [item], journal=journal, agent="_shown").records[0].from_journal
    with pytest.raises(JournalConflict) as got:
        fanout_map(_prompt, ["other"], journal=journal)
    assert got.value.conflicts == {"0": ("agent", "item")}
    assert "Name the steps anew with task_id=" in str(got.value)


def test_two_items_with_one_name_are_refused() -> None:
    """In a journal a name stands for one step."""
    with pytest.raises(JournalConflict, match="two specs of one journalled run have the same task_id: 'same'"):
        fanout_map(_shown, [1, 2], task_id=lambda item, index: "same", journal=MemoryJournal())


def test_an_item_that_nothing_can_identify_is_refused(ledger: Ledger) -> None:
    """Without JSON and without a pickle a step cannot be found again."""
    with pytest.raises(InputError, match=r"items\[1\] cannot be journalled: item: the item has no JSON, and cannot be"):
        fanout_map(_noted(ledger), [1, WithLock()], journal=MemoryJournal())
    assert ledger.counts() == {}


def test_the_default_representation_of_an_object_does_not_count() -> None:
    """The `repr` of an object may have its address in it: the pickle identifies the step."""
    journal = MemoryJournal()
    fanout_map(_shown, [Asker()], journal=journal)
    assert fanout_map(_shown, [Asker()], journal=journal).records[0].from_journal
