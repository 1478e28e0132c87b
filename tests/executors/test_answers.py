"""What a step may return: text, JSON, what can be made JSON; and that no answer is lost over its type."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import pathlib
import subprocess
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs
import pytest
from attrs import evolve
from bounds import HANG_BOUND_S

from fanout_sync import AgentExecutor, AgentStepSpec, EventSender, FunctionExecutor, Run, Runner, StepOutcome
from fanout_sync.executors.answers import MOST_BYTES
from fanout_sync.testing import make_specs
from fanout_sync.wire.strict_json import write_json
from fanout_sync.wire.unstructure import MOST_ITEMS

SPEC = AgentStepSpec("t", "tester", "", "hello")

MakeRunner = Callable[..., Runner]


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Word(str, enum.Enum):
    YES = "yes"


@attrs.define
class Point:
    x: int
    total: int = attrs.field(init=False, default=7)


@attrs.define
class Sized(Point):
    size: set[int] = attrs.field(factory=lambda: {3, 1})


@dataclasses.dataclass
class Reply:
    when: NoSuchName  # type: ignore[name-defined]  # noqa: F821 - an annotation that cannot be resolved
    points: tuple[Point, ...]
    words: list[str] = dataclasses.field(default_factory=list)


class Row(NamedTuple):
    a: int
    b: int


WHEN = datetime.datetime(2024, 1, 2, 3, 4, 5)
SHOWN = "2024-01-02T03:04:05"

CONVERTED: list[tuple[Any, Any]] = [
    ((1, "a"), [1, "a"]),
    (Row(1, 2), [1, 2]),
    ({"b", "a", "c"}, ["a", "b", "c"]),
    (frozenset([2, 10, 1]), [1, 2, 10]),
    (collections.deque([1]), [1]),
    (range(3), [0, 1, 2]),
    ({"a": 1}.values(), [1]),
    (WHEN, SHOWN),
    (WHEN.date(), "2024-01-02"),
    (WHEN.time(), "03:04:05"),
    (datetime.timedelta(minutes=1), 60.0),
    (decimal.Decimal("1.10"), "1.10"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pathlib.PurePosixPath("a/b"), "a/b"),
    (Colour.RED, "red"),
    (Colour.PAIR, [1, 2]),
    (collections.UserString("text"), "text"),
    ({1: "a"}.items(), [[1, "a"]]),
    ({1: "a", 2.5: "b", None: "c", False: "d"}, {"1": "a", "2.5": "b", "null": "c", "false": "d"}),
    ({Colour.RED: 1, WHEN.date(): 2, uuid.UUID(int=0): 3}, {"red": 1, "2024-01-02": 2, str(uuid.UUID(int=0)): 3}),
    (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
    (Point(1), {"x": 1, "total": 7}),
    (Reply(WHEN, (Point(1),)), {"when": SHOWN, "points": [{"x": 1, "total": 7}], "words": []}),
    (Reply(None, (Sized(2),)), {"when": None, "points": [{"x": 2, "total": 7, "size": [1, 3]}], "words": []}),
    ({"a": b"text", "b": [Word.YES, {1: (Point(1),)}]}, {"a": "text", "b": ["yes", {"1": [{"x": 1, "total": 7}]}]}),
    ([StepOutcome.completed(SPEC, "inner")], [attrs.asdict(StepOutcome.completed(SPEC, "inner"))]),
]  # fmt: skip


def outcome_of(value: Any) -> StepOutcome:
    return FunctionExecutor({"tester": lambda spec: value}).execute_step(SPEC)


def run_of(make_runner: MakeRunner, value: Any) -> Run:
    return make_runner(FunctionExecutor({"tester": lambda spec: value() if callable(value) else value})).run([SPEC])


@pytest.mark.parametrize(("value", "structured"), CONVERTED)
def test_what_json_can_hold_is_converted(value: Any, structured: Any) -> None:
    """The outcome has the value as JSON, by the types of its parts, and the text of that."""
    outcome = outcome_of(value)
    assert (outcome.success, outcome.structured) == (True, structured), outcome.output
    assert type(outcome.structured) is type(structured)
    assert outcome.output == write_json(structured)


def test_values_are_converted_on_every_backend(make_runner: MakeRunner) -> None:
    """The value is converted where the step ran; it is never sent."""
    run = run_of(make_runner, lambda: (Reply(WHEN, (Point(1),)), {1: {2}}))
    assert run[0].structured == [{"when": SHOWN, "points": [{"x": 1, "total": 7}], "words": []}, {"1": [2]}]
    assert run.records[0].status == "succeeded"


@pytest.mark.parametrize("value", [b"caf\xc3\xa9", bytearray(b"caf\xc3\xa9"), memoryview(b"caf\xc3\xa9")])
def test_bytes_that_are_utf_8_are_text(value: Any) -> None:
    """Bytes become the output, as a `str` does."""
    assert outcome_of(value) == StepOutcome.completed(SPEC, "café")


def test_a_str_of_a_subclass_becomes_plain_text() -> None:
    """A word of an enumeration is the text that it has as its value, on threads as on processes."""
    outcome = outcome_of(Word.YES)
    assert (outcome.output, type(outcome.output), outcome.structured) == ("yes", str, None)


def test_models_of_pydantic_are_converted() -> None:
    """A model becomes what pydantic makes of it in JSON mode, at any depth; what that refuses goes by its own type."""
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", when=(datetime.datetime, ...), price=(decimal.Decimal, ...))
    outer = pydantic.create_model(
        "Outer", point=(Point, ...), __config__=pydantic.ConfigDict(arbitrary_types_allowed=True)
    )
    model = inner(when=WHEN, price="1.10")
    assert outcome_of(model).structured == {"when": SHOWN, "price": "1.10"}
    assert outcome_of({"rows": (model,)}).structured == {"rows": [{"when": SHOWN, "price": "1.10"}]}
    assert outcome_of(outer(point=Point(1))).structured == {"point": {"x": 1, "total": 7}}
    assert outcome_of(pydantic.RootModel[list[int]]([1])).structured == [1]


def test_scalars_and_arrays_of_numpy_are_converted() -> None:
    """They become numbers and nested lists; a time of any unit becomes its ISO text."""
    numpy = pytest.importorskip("numpy")
    scalars = {"i": numpy.int64(3), "f": numpy.float32(1.5), "b": numpy.bool_(True), 1: numpy.float64(0.5)}
    assert outcome_of(scalars).structured == {"i": 3, "f": 1.5, "b": True, "1": 0.5}
    assert outcome_of((numpy.array([[1, 2], [3, 4]]), numpy.zeros(MOST_ITEMS - 1))).success
    assert outcome_of(numpy.array([[1.5, 2], [3, 4]])).structured == [[1.5, 2.0], [3.0, 4.0]]
    times = numpy.array(["2024-01-02T03:04:05"], dtype="datetime64[ns]")
    assert outcome_of(times).structured == ["2024-01-02T03:04:05.000000000"]
    for value, reason in (
        (numpy.zeros((MOST_ITEMS, 2)), f"an array of {2 * MOST_ITEMS} items is too large"),
        (numpy.array([1.0, numpy.nan]), "[1]: expected a finite number"),
        ([numpy.array([1j])], "[0][0]: expected a JSON value"),
    ):
        assert reason in outcome_of(value).output


class Silent:
    """An answer whose `repr` raises."""

    def __init__(self) -> None:
        self.paid = "for this"

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Unreadable(dict[str, Any]):
    """A dict whose methods raise."""

    def items(self) -> Any:
        raise RuntimeError("no items")


class Verbose:
    """An answer with a `repr` of many lines."""

    def __repr__(self) -> str:
        return "first line\nsecond line"


def _cycle() -> list[Any]:
    cycle: list[Any] = [1]
    cycle.append((cycle,))
    return cycle


def _words() -> Iterator[str]:
    yield "never asked for"


INVALID: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: None, "returned None; return a str, a StepOutcome or a JSON value", "None"),
    (lambda: [1, object], "[1]: expected a JSON value", "[1, <class 'object'>]"),
    (lambda: SPEC, "returned AgentStepSpec", repr(SPEC)),
    (lambda: {"a": (b"\xff",)}, "a[0]: expected a JSON value, got an instance of bytes", repr({"a": (b"\xff",)})),
    (lambda: (1, float("nan")), "[1]: expected a finite number", "(1, nan)"),
    (lambda: [float("-inf")], "[0]: expected a finite number", "[-inf]"),
    (lambda: {"a": ("\udc80",)}, "a[0]: a lone surrogate (U+DC80)", r"{'a': ('\udc80',)}"),
    (lambda: {1: "a", "1": "b"}, "two keys are both '1' in JSON", "{1: 'a', '1': 'b'}"),
    (lambda: {(1, 2): "a"}, "expected a string as key", "{(1, 2): 'a'}"),
    (_cycle, "it contains itself", "[1, ([...],)]"),
    (lambda: map(str, [1]), "an iterator is not read: return a list", "<map object"),
    (_words, "an iterator is not read: return a list", "<generator object"),
    (lambda: [_words()], "[0]: expected a JSON value, got an instance of generator", "[<generator object"),
    (Silent, "returned Silent", "{'paid': 'for this'}"),
    (lambda: ["paid", Silent()], "returned list", "['paid', <Silent instance at"),
    (lambda: Unreadable(a=1), "RuntimeError: no items", "{'a': 1}"),
    (Verbose, "returned Verbose", "\nfirst line\nsecond line"),
    (lambda: ValueError("paid"), "returned ValueError", "ValueError('paid')"),
]


@pytest.mark.parametrize(("make", "reason", "kept"), INVALID)
def test_what_json_cannot_hold_is_kept_as_text(make: Callable[[], Any], reason: str, kept: str) -> None:
    """The step is invalid; its first line says why and what to return, and the output has the whole `repr`."""
    run = Runner(FunctionExecutor({"tester": lambda spec: make()})).run([SPEC])
    (outcome,), (record,) = run, run.records
    assert record.status == "invalid"
    assert record.error is not None
    assert record.error.type == "InvalidOutcome"
    assert record.error.message == outcome.output.partition("\n")[0]
    assert "return a str, a StepOutcome or a JSON value" in record.error.message
    assert reason in record.error.message
    assert kept in outcome.output
    assert (type(outcome), outcome.task_id, outcome.agent, outcome.success) == (StepOutcome, "t", "tester", False)


@pytest.mark.parametrize("value", [lambda: {"answer": [object] * 300}, lambda: None])
def test_invalid_answers_are_kept_on_every_backend(make_runner: MakeRunner, value: Callable[[], Any]) -> None:
    """The status and the text are the same wherever the step ran, and nothing but text is sent."""
    run = run_of(make_runner, value)
    assert run.records[0].status == "invalid"
    assert repr(value()) in run[0].output


def test_what_is_kept_of_a_huge_answer_is_cut() -> None:
    """After 1 MB of UTF-8 a note says how much there was."""

    class Answer:
        def __init__(self, text: str) -> None:
            self.text = text

        def __repr__(self) -> str:
            return self.text

    whole, cut = outcome_of(Answer("x" * MOST_BYTES)), outcome_of(Answer("é" * MOST_BYTES))
    assert whole.output.endswith("x" * MOST_BYTES)
    assert "é" * (MOST_BYTES // 2) + "… (cut" in cut.output
    assert cut.output.endswith(f"(cut: the first {MOST_BYTES} of {2 * MOST_BYTES} bytes)")


class Wrapping(FunctionExecutor):
    """An executor that adds to what the one that it is made of returns."""

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        outcome = super().execute_step(spec, event_tx)
        return evolve(outcome, output=f"{outcome.output} – logged")


def test_an_executor_passes_on_the_invalid_outcome_of_another(make_runner: MakeRunner) -> None:
    """It sees a failed outcome, which it may copy and change; the step stays invalid."""
    run = make_runner(Wrapping({"tester": lambda spec: object})).run([SPEC])
    assert run.records[0].status == "invalid"
    assert run[0].output.endswith("a JSON value – logged")


class Returning(AgentExecutor):
    """An executor that returns what a function does."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        outcome: StepOutcome = self.make()
        return outcome


def _outcome_with(structured: Any, output: str = "the paid text") -> StepOutcome:
    return StepOutcome.completed(SPEC, output, structured)


@pytest.mark.parametrize(
    ("make", "reason", "kept"),
    [
        (lambda: ("paid", 1), "expected a StepOutcome", "('paid', 1)"),
        (lambda: {"text": "x" * 5000}, "expected a StepOutcome", "x" * 5000),
        (lambda: _outcome_with([object]), "structured[0]", "the paid text\nstructured: [<class 'object'>]"),
        (lambda: _outcome_with(Unreadable(a=1)), "no items", "the paid text\nstructured: {'a': 1}"),
        (lambda: _outcome_with(None, "paid \udc80 text"), "output: a lone surrogate", r"paid \udc80 text"),
    ],
)
def test_no_outcome_of_an_executor_is_lost(
    make_runner: MakeRunner, make: Callable[[], Any], reason: str, kept: str
) -> None:
    """What is no outcome, or one that the wire cannot carry, leaves its text in the invalid one."""
    run = make_runner(Returning(make)).run([SPEC])
    error = run.records[0].error
    assert error is not None
    assert run.records[0].status == "invalid"
    assert reason in error.message
    assert kept in run[0].output
    assert len(error.message) < 500


def test_plain_answers_need_no_converter() -> None:
    """Text and JSON import neither cattrs nor the conversion."""
    script = """
import sys
from fanout_sync import AgentStepSpec, FunctionExecutor, Runner
specs = [AgentStepSpec(str(n), "a", "", "") for n in range(2)]
Runner(FunctionExecutor({"a": lambda spec: [1, {"b": None}]})).run(specs)
print([name for name in ("cattrs", "fanout_sync.wire.unstructure") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG_BOUND_S)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# What else `structured` may be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "structured"), CONVERTED)
def test_what_an_outcome_has_is_converted_like_what_is_returned(value: Any, structured: Any) -> None:
    """The text stays what the agent has said."""
    outcome = outcome_of(StepOutcome.completed(SPEC, "text", value))
    assert (outcome.output, outcome.success, outcome.structured) == ("text", True, structured)


def test_an_outcome_of_plain_json_is_passed_on_as_it_is() -> None:
    """The very object, without a copy."""
    given = StepOutcome.completed(SPEC, "text", {"a": [1]})
    assert outcome_of(given) is given


def test_an_outcome_that_no_json_can_hold_says_what_to_do(make_runner: MakeRunner) -> None:
    """The text is kept, and the message names the ways to make JSON data."""
    run = make_runner(FunctionExecutor({"tester": _with_object})).run([SPEC])
    assert run.records[0].status == "invalid"
    assert "model.model_dump(mode='json')" in run[0].output.splitlines()[0]
    assert "the paid text" in run[0].output


def _with_object(spec: AgentStepSpec) -> StepOutcome:
    return StepOutcome.completed(spec, "the paid text", Plain())


def test_the_field_at_fault_of_a_model_is_named() -> None:
    """Not one that pydantic makes JSON of, such as a secret, a set or another model."""
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", key=(pydantic.SecretStr, pydantic.SecretStr("hidden")), raw=(bytes, b"\xff"))
    outer = pydantic.create_model(
        "Outer",
        key=(pydantic.SecretStr, pydantic.SecretStr("hidden")),
        words=(set[int], {1}),
        when=(datetime.datetime, WHEN),
        inner=(inner, ...),
    )
    assert "(inner.raw: expected a JSON value, got an instance of bytes)" in outcome_of(outer(inner=inner())).output
    assert "(raw: expected a JSON value" in outcome_of(inner()).output
    plain = outcome_of(outer(inner=inner(raw=b"a")))
    assert plain.structured == {
        "key": "**********",
        "words": [1],
        "when": SHOWN,
        "inner": {"key": "**********", "raw": "a"},
    }


# The text of what cannot be converted ---------------------------------------------------------------------------------


class Plain:
    """An answer without a `repr` of its own."""

    def __init__(self, **more: Any) -> None:
        self.content = "paid answer"
        self.__dict__.update(more)


class Slotted:
    __slots__ = ("content", "missing")

    def __init__(self) -> None:
        self.content = "paid answer"


def _circle() -> Plain:
    circle = Plain()
    circle.itself = [circle]  # type: ignore[attr-defined]  # any attribute
    return circle


@pytest.mark.parametrize(
    "make",
    [Plain, Slotted, lambda: [Plain()], lambda: {"a": (Slotted(),)}, lambda: Plain(inner=Plain()), _circle],
    ids=["object", "slots", "list", "nested", "attribute", "circle"],
)
def test_the_attributes_of_an_object_are_kept(make: Callable[[], Any]) -> None:
    """What has no `repr` of its own is followed by its attributes, at any depth."""
    assert "{'content': 'paid answer'" in outcome_of(make()).output


def test_an_object_that_is_shared_many_times_does_not_explode() -> None:
    """The text is bounded, however the objects refer to each other."""
    shared = Plain()
    for _ in range(60):
        shared = Plain(left=shared, right=shared)
    assert len(outcome_of(shared).output) <= 2 * MOST_BYTES


def test_arrays_are_kept_whole() -> None:
    """Not only their first and last items; a large one as far as 1 MB goes."""
    numpy = pytest.importorskip("numpy")
    values = numpy.arange(3000, dtype=float)
    values[1] = numpy.nan
    for answer in (values, {"scores": values}, [(values,)]):
        assert "1.500e+03" in outcome_of(answer).output
    large = outcome_of(numpy.arange(200_000)).output
    assert "of shape (200000,)" in large
    assert "123456, 123457" in large
    assert len(outcome_of(numpy.zeros(10**7)).output) < 2 * MOST_BYTES


def test_tables_are_kept_whole() -> None:
    """A table of pandas is kept as CSV, as far as 1 MB goes."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"number": range(500), "name": [f"row {n}" for n in range(500)]})
    for answer in (table, [table], {"table": table["name"]}):
        assert "250,250,row 250\n" in outcome_of(answer).output or "250,row 250\n" in outcome_of(answer).output
    assert len(outcome_of(pandas.DataFrame({"n": range(10**6)})).output) < 2 * MOST_BYTES


def test_none_says_what_to_return_instead() -> None:
    """A function that only does something returns an empty text."""
    assert outcome_of(None).output.endswith("or '' if there is nothing to say")
    assert outcome_of("").success


class Structuring(AgentExecutor):
    """Returns an outcome whose `structured` is no JSON data yet."""

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        structured: Any = {"at": datetime.date(2026, 1, 1), 1: {2}} if spec.prompt == "0" else object()
        return StepOutcome.completed(spec, "the text", structured)


def test_structured_data_of_any_executor_is_converted(make_runner: Callable[..., Runner]) -> None:
    """As what functions return is; what cannot be is invalid, and its text is kept."""
    run = make_runner(Structuring()).run(make_specs(2))
    assert [record.status for record in run.records] == ["succeeded", "invalid"]
    assert run[0].structured == {"at": "2026-01-01", "1": [2]}
    assert "the text" in run[1].output
