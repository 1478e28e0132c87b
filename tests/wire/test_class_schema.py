"""`schema_of`, `with_output_schema` and `structured_as`: the schema of a class, and objects of it from JSON."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, List, Literal, NewType, Optional, TypedDict, TypeVar, Union  # noqa: UP035

import attr
import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout_sync import AgentStepSpec, FunctionExecutor, OptionError, Runner, StepOutcome, WireError, schema_of
from fanout_sync.executors.structured.validation import compiled
from fanout_sync.wire.strict_json import write_json
from fanout_sync.wire.unstructure import unstructure


def outcome_of(structured: Any, success: bool = True) -> StepOutcome:
    return StepOutcome("t", "s", "a", "", success, structured)


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Stars(enum.IntEnum):
    ONE = 1
    TWO = 2


@attrs.frozen
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Named:
    name: str
    point: Point | None = None


@dataclasses.dataclass
class Tree:
    label: str
    children: list[Tree] = dataclasses.field(default_factory=list)
    parent: Tree | None = None


UserId = NewType("UserId", int)

POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "number"}}, "required": ["x"]}


def test_the_schema_of_a_class() -> None:
    """Each field is a property, and required if it has no default; what it is made of is under `$defs`."""
    assert schema_of(Point) == POINT
    assert schema_of(Named) == {
        "type": "object",
        "properties": {"name": {"type": "string"}, "point": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]}},
        "required": ["name"],
        "$defs": {"Point": POINT},
    }


def test_the_schema_of_a_class_that_refers_to_itself() -> None:
    """It is under `$defs` itself."""
    schema = schema_of(Tree)
    assert (schema["$ref"], list(schema["$defs"])) == ("#/$defs/Tree", ["Tree"])
    value = {"label": "a", "children": [{"label": "b"}], "parent": {"label": "c"}}
    assert compiled(schema).errors(value) == []
    assert outcome_of(value).structured_as(Tree) == Tree("a", [Tree("b")], Tree("c"))


def test_classes_with_the_same_name_are_told_apart() -> None:
    """Each has a definition of its own."""

    def point() -> type:
        return dataclasses.make_dataclass("Point", [("z", str)])

    cls = dataclasses.make_dataclass("Points", [("first", Point), ("second", point())])
    assert set(schema_of(cls)["$defs"]) == {"Point", "Point_2"}
    value = {"first": {"x": 1}, "second": {"z": "a"}}
    assert compiled(schema_of(cls)).errors(value) == []
    made: Any = outcome_of(value).structured_as(cls)
    assert (made.first, made.second.z) == (Point(1), "a")


WHEN = datetime.datetime(2024, 1, 2, 3, 4, 5)

TYPES: list[tuple[Any, dict[str, Any], Any, Any]] = [
    (str, {"type": "string"}, "a", "a"),
    (int, {"type": "integer"}, 3.0, 3),
    (float, {"type": "number"}, 3, 3.0),
    (bool, {"type": "boolean"}, True, True),
    (None, {"type": "null"}, None, None),
    (Any, {}, {"a": [1]}, {"a": [1]}),
    (datetime.datetime, {"type": "string", "format": "date-time"}, "2024-01-02T03:04:05", WHEN),
    (
        datetime.datetime,
        {"type": "string", "format": "date-time"},
        "2024-01-02T03:04:05Z",
        WHEN.replace(tzinfo=datetime.timezone.utc),
    ),
    (datetime.date, {"type": "string", "format": "date"}, "2024-01-02", WHEN.date()),
    (Mood, {"enum": ["good", "bad"]}, "bad", Mood.BAD),
    (Stars, {"enum": [1, 2]}, 1.0, Stars.ONE),
    (Literal["a", 1, None], {"enum": ["a", 1, None]}, None, None),
    (Literal[Mood.GOOD], {"enum": ["good"]}, "good", Mood.GOOD),
    (Optional[int], {"type": ["integer", "null"]}, None, None),  # noqa: UP045 - one way to write it
    (Union[int, str], {"type": ["integer", "string"]}, "a", "a"),  # noqa: UP007 - one way to write it
    (int | list[int], {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}, [1], [1]),
    (list[int], {"type": "array", "items": {"type": "integer"}}, [1, 2], [1, 2]),
    (List[int], {"type": "array", "items": {"type": "integer"}}, [], []),  # noqa: UP006 - one way to write it
    (list, {"type": "array"}, ["a"], ["a"]),
    (Sequence[str], {"type": "array", "items": {"type": "string"}}, ["a"], ["a"]),
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}, [1, 2], (1, 2)),
    (tuple, {"type": "array"}, [1], (1,)),
    (typing.Tuple, {"type": "array"}, [1], (1,)),  # noqa: UP006 - one way to write it
    (tuple[()], {"type": "array", "minItems": 0, "maxItems": 0}, [], ()),
    (
        tuple[int, str],
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        [1, "a"],
        (1, "a"),
    ),
    (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["a"], {"a"}),
    (frozenset[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1], frozenset([1])),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": 1}),
    (Mapping[str, Point], {"type": "object", "additionalProperties": POINT}, {"a": {"x": 1}}, {"a": Point(1)}),
    (dict, {"type": "object"}, {"a": [1]}, {"a": [1]}),
    (typing.Dict, {"type": "object"}, {}, {}),  # noqa: UP006 - one way to write it
    (UserId, {"type": "integer"}, 1, 1),
    (Annotated[list[UserId], "note"], {"type": "array", "items": {"type": "integer"}}, [1], [1]),
    (list[Point | Named], {}, [{"name": "a"}, {"x": 1}], [Named("a"), Point(1)]),
]


@pytest.mark.parametrize("make", [dataclasses.make_dataclass, attrs.make_class])
@pytest.mark.parametrize(("kind", "schema", "value", "made"), TYPES)
def test_types_of_fields(make: Any, kind: Any, schema: dict[str, Any], value: Any, made: Any) -> None:
    """Each type has its schema, and a value that fits becomes an object of that type."""
    cls = make(
        "Holder",
        [("field", kind)] if make is dataclasses.make_dataclass else {"field": attr.ib(type=kind or type(None))},
    )
    made_schema = schema_of(cls)["properties"]["field"]
    if "$ref" not in str(made_schema):
        assert made_schema == schema
    assert compiled(schema_of(cls)).errors({"field": value}) == []
    got = outcome_of({"field": value}).structured_as(cls).field
    assert got == made
    assert type(got) is type(made)


T = TypeVar("T")


@dataclasses.dataclass
class Box(Generic[T]):
    value: T


class Fields(TypedDict):
    a: int


class Flags(enum.Flag):
    ONE = 1


class Pairs(enum.Enum):
    PAIR = (1, 2)


@pytest.mark.parametrize(
    "kind",
    [
        *(bytes, complex, object, type, decimal.Decimal, datetime.time, datetime.timedelta, Fields, Flags, Pairs),
        *(dict[int, str], dict[Mood, str], list[bytes], set[list[int]], set[Tree], Literal[b"a"], Box[int], T, Box),
        *(collections.abc.Callable[[], int], type[int], collections.deque[int], bytes | None, tuple[int, bytes]),
    ],
)
def test_other_types_are_refused_by_name(kind: Any) -> None:
    """The error names the class, the field and the type; `structured_as` refuses them, too, whatever the value is."""
    cls = dataclasses.make_dataclass("Holder", [("fine", int, 1), ("wrong", kind, None)])
    calls: list[Callable[[], Any]] = [lambda: schema_of(cls), lambda: outcome_of({"fine": 1}).structured_as(cls)]
    for call in calls:
        with pytest.raises(
            OptionError, match=r"(Holder\.wrong|Box\.value) has the type .*of which no JSON Schema is made"
        ):
            call()


@dataclasses.dataclass
class Unresolvable:
    field: NoSuchName  # type: ignore[name-defined]  # noqa: F821 - an annotation that cannot be resolved


@attrs.define(auto_attribs=False)
class Untyped:
    field = attrs.field()  # type: ignore[var-annotated]


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Unresolvable, "the annotations of Unresolvable cannot be resolved: name 'NoSuchName' is not defined"),
        (Untyped, "Untyped.field has no type"),
        (Point(1), r"got Point Point\(x=1, y=0.0\); pass the class Point"),
        (list[Point], "cls must be a pydantic model, an attrs class or a dataclass, got "),
        (Box[int], "cls must be a pydantic model, an attrs class or a dataclass, got "),
        (int, "got type <class 'int'>"),
        (Mood, "<enum 'Mood'>"),
        (Fields, "cls must be a pydantic model"),
        ("Point", "got str 'Point'"),
        ({"type": "object"}, "got dict"),
        (None, "got None"),
    ],
)
def test_what_is_no_such_class_is_refused(cls: Any, reason: str) -> None:
    """The error says what came and what is taken."""
    for call in (lambda: schema_of(cls), lambda: outcome_of({}).structured_as(cls)):
        with pytest.raises(OptionError, match=reason):
            call()


def test_arguments_that_are_no_fields_are_refused() -> None:
    """An object could not be made without them."""

    @dataclasses.dataclass
    class WithArgument:
        field: dataclasses.InitVar[int]

    with pytest.raises(OptionError, match="WithArgument"):
        schema_of(WithArgument)


def test_fields_that_init_does_not_take_are_left_out() -> None:
    """They are no part of the schema, and ignored in a value, as all unknown fields are."""

    @attrs.define
    class Counted:
        _items: list[int]
        total: int = attrs.field(init=False, default=7)

    assert schema_of(Counted)["properties"] == {"_items": {"type": "array", "items": {"type": "integer"}}}
    assert outcome_of({"_items": [1], "total": 1, "more": 2}).structured_as(Counted) == Counted([1])


def test_a_class_in_a_function_may_refer_to_itself() -> None:
    """Its name is known, although nothing else in the function is."""

    @dataclasses.dataclass
    class Local:
        next: Local | None = None

    assert "$ref" in schema_of(Local)
    assert outcome_of({"next": {}}).structured_as(Local) == Local(Local())


@attrs.define
class Adult:
    age: int = attrs.field(validator=attrs.validators.ge(18))
    name: str = attrs.field(default="", validator=attrs.validators.max_len(3))


@dataclasses.dataclass
class Event:
    when: datetime.date
    who: list[Adult]
    kind: Mood | int = 1

    def __post_init__(self) -> None:
        if not self.who:
            raise ValueError("nobody comes")


GOOD_EVENT = {"when": "2024-01-02", "who": [{"age": 20}]}


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"when": "soon"}, "structured.when", "expected a date in ISO 8601, got the string 'soon'"),
        ({"when": 5}, "structured.when", "expected a date"),
        ({"who": {"age": 20}}, "structured.who", "expected an array, got an object"),
        ({"who": [GOOD_EVENT["who"], 3]}, "structured.who[0]", "expected an object, got an array"),
        ({"who": [{"age": 20}, {"age": "20"}]}, "structured.who[1].age", "expected an integer, got the string '20'"),
        ({"who": [{"age": True}]}, "structured.who[0].age", "expected an integer, got true"),
        ({"who": [{"age": 2.5}]}, "structured.who[0].age", "expected an integer, got the number 2.5"),
        ({"who": [{}]}, "structured.who[0].age", "missing; Adult requires it"),
        ({"who": [{"age": 17}]}, "structured.who[0].age", "Adult refuses it: ValueError: 'age' must be >= 18: 17"),
        ({"who": [{"age": 20, "name": "Adam"}]}, "structured.who[0].name", "Adult refuses it: ValueError"),
        ({"who": []}, "structured", "Event refuses it: ValueError: nobody comes"),
        ({"kind": "ugly"}, "structured.kind", "expected Mood or int, got the string 'ugly'"),
    ],
)
def test_errors_name_the_field(change: dict[str, Any], field: str, reason: str) -> None:
    """A value that does not fit, a field that is missing, and what the class itself refuses."""
    with pytest.raises(WireError) as caught:
        outcome_of({**GOOD_EVENT, **change}).structured_as(Event)
    assert caught.value.field == field
    assert reason in caught.value.reason


def test_a_union_is_the_member_that_fits_best() -> None:
    """Of two classes that both fit, the one that knows more of the fields; an error is that of the closest one."""
    cls: Any = dataclasses.make_dataclass("Holder", [("it", Point | Space | list[Point])])
    assert outcome_of({"it": {"x": 1, "y": 2, "z": 3}}).structured_as(cls).it == Space(1, 2.0, 3.0)
    with pytest.raises(WireError, match=r"structured.it\[1\].x: expected an integer, got the string 'a'"):
        outcome_of({"it": [{"x": 1}, {"x": "a"}]}).structured_as(cls)


@attrs.frozen
class Space:
    x: int
    y: float
    z: float


def test_items_that_no_set_can_hold_are_an_error() -> None:
    """A set of anything may get objects."""
    cls = dataclasses.make_dataclass("Holder", [("items", set)])
    with pytest.raises(WireError, match=r"structured.items: expected items that can be in a set"):
        outcome_of({"items": [{}]}).structured_as(cls)


@pytest.mark.parametrize(
    ("success", "reason"), [(True, "give its spec an output_schema"), (False, "the step has failed")]
)
def test_without_a_value_there_is_no_object(success: bool, reason: str) -> None:
    """The error says why there is none."""
    with pytest.raises(WireError, match=f"^structured: there is no structured value; {reason}$"):
        outcome_of(None, success).structured_as(Point)


# --- pydantic -----------------------------------------------------------------------------------------------------


def test_models_of_pydantic_make_their_own_schema() -> None:
    """The schema is the model's, and the object comes out of its own validation, strict or not."""
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model(
        "Order",
        __config__=pydantic.ConfigDict(strict=True),
        when=(datetime.date, ...),
        items=(tuple[int, ...], pydantic.Field(alias="rows")),
    )
    assert schema_of(model) == model.model_json_schema()
    value = {"when": "2024-01-02", "rows": [1, 2]}
    assert compiled(schema_of(model)).errors(value) == []
    made = outcome_of(value).structured_as(model)
    assert (type(made), made.when, made.items) == (model, WHEN.date(), (1, 2))
    with pytest.raises(WireError) as caught:
        outcome_of({**value, "rows": [1, "2"]}).structured_as(model)
    assert caught.value.field == "structured.rows[1]"
    assert outcome_of([1]).structured_as(pydantic.RootModel[list[int]]).root == [1]


def test_dataclasses_of_pydantic_make_their_own_schema() -> None:
    """They have constraints that a dataclass does not have."""
    pydantic = pytest.importorskip("pydantic")
    cls = pydantic.dataclasses.dataclass(
        dataclasses.make_dataclass("Few", [("n", Annotated[int, pydantic.Field(lt=3)])])
    )
    assert schema_of(cls)["properties"]["n"]["exclusiveMaximum"] == 3
    assert outcome_of({"n": 2}).structured_as(cls).n == 2
    with pytest.raises(WireError, match=r"structured\.n: Input should be less than 3"):
        outcome_of({"n": 3}).structured_as(cls)


@pytest.mark.filterwarnings("ignore:Core Pydantic V1 functionality")  # on Python 3.14
def test_models_without_a_schema_are_refused() -> None:
    """A model of pydantic 1, and one with a field of which pydantic makes no schema."""
    pydantic = pytest.importorskip("pydantic")
    v1 = pytest.importorskip("pydantic.v1")
    old = v1.create_model("Old", n=(int, ...))
    with pytest.raises(OptionError, match="pydantic 2 makes no JSON Schema of Old"):
        schema_of(old)
    with pytest.raises(OptionError, match="Old is a model of pydantic 1"):
        outcome_of({"n": 1}).structured_as(old)
    model = pydantic.create_model("Hooked", hook=(collections.abc.Callable[[], int], ...))
    with pytest.raises(OptionError, match="pydantic 2 makes no JSON Schema of Hooked: "):
        schema_of(model)
    with pytest.raises(OptionError, match=r"Holder.inner has the type Hooked"):
        schema_of(dataclasses.make_dataclass("Holder", [("inner", model)]))


# --- specs --------------------------------------------------------------------------------------------------------


def test_a_spec_takes_the_class_itself() -> None:
    """The spec has the schema, so it can be written as JSON; a dict or `None` stays what it is."""
    spec = AgentStepSpec("t", "a", "", "").with_output_schema(Point)
    assert spec.output_schema == POINT
    assert AgentStepSpec.from_json(spec.to_json()) == spec
    assert spec.with_output_schema({"type": "array"}).output_schema == {"type": "array"}
    assert spec.with_output_schema(None).output_schema is None
    for wrong in (int, list[Point]):
        with pytest.raises(OptionError):
            spec.with_output_schema(wrong)


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_from_a_class_to_its_objects(backend: Any) -> None:
    """A run with the schema of a class gives objects of the class, or says in the outcome why not."""
    executor = FunctionExecutor({"a": lambda spec: f"Sure:\n```json\n{spec.prompt}\n```"})
    prompts = ['{"x": 1, "y": 2.5}', '{"x": "one"}']
    specs = [AgentStepSpec(f"t{n}", "a", "", prompt).with_output_schema(Point) for n, prompt in enumerate(prompts)]
    good, bad = Runner(executor, backend=backend).run(specs)
    assert good.structured_as(Point) == Point(1, 2.5)
    assert "$.x: 'one' is not of type 'integer'" in bad.output
    with pytest.raises(WireError, match="the step has failed"):
        bad.structured_as(Point)


# --- every type that is taken ---------------------------------------------------------------------------------------

text = st.text(max_size=5)
finite = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(timezones=st.none() | st.just(datetime.timezone.utc))

TypeAndValues = tuple[Any, st.SearchStrategy[Any]]

PLAIN: list[TypeAndValues] = [
    (str, text),
    (int, st.integers(-(2**70), 2**70)),
    (float, finite),
    (bool, st.booleans()),
    (type(None), st.none()),
    (datetime.datetime, moments),
    (datetime.date, st.dates()),
    (Mood, st.sampled_from(Mood)),
    (Stars, st.sampled_from(Stars)),
    (Literal["a", "b", 7], st.sampled_from(["a", "b", 7])),
    (UserId, st.integers(0, 9)),
    (Point, st.builds(Point, st.integers(), finite)),
]


def _is_taken_apart(first: Any, second: Any) -> bool:
    """Return whether the JSON of no value of one type is the JSON of a value of the other."""
    in_json = {str: 0, datetime.datetime: 0, datetime.date: 0, Mood: 0, int: 1, float: 1, UserId: 1, Stars: 1}
    groups = [in_json.get(kind, kind if kind in (bool, type(None), Point) else -1) for kind in (first, second)]
    return groups[0] != groups[1] and -1 not in groups


def _compound(inner: st.SearchStrategy[TypeAndValues]) -> st.SearchStrategy[TypeAndValues]:
    def of_lists(kind: TypeAndValues) -> TypeAndValues:
        return list[kind[0]], st.lists(kind[1], max_size=3)  # type: ignore[valid-type]  # made at run time

    def of_tuples(kinds: list[TypeAndValues]) -> TypeAndValues:
        made: Any = tuple
        return made[tuple(kind for kind, _ in kinds)], st.tuples(*(values for _, values in kinds))

    def of_dicts(kind: TypeAndValues) -> TypeAndValues:
        return dict[str, kind[0]], st.dictionaries(text, kind[1], max_size=3)  # type: ignore[valid-type]

    def of_options(kind: TypeAndValues) -> TypeAndValues:
        return Optional[kind[0]], st.none() | kind[1]  # noqa: UP045 - made at run time

    def of_records(kinds: list[TypeAndValues]) -> TypeAndValues:
        names = [f"f{number}" for number in range(len(kinds))]
        cls = dataclasses.make_dataclass("Made", [(name, kind) for name, (kind, _) in zip(names, kinds, strict=True)])
        return cls, st.builds(cls, *(values for _, values in kinds))

    return st.one_of(
        inner.map(of_lists),
        st.lists(inner, max_size=3).map(of_tuples),
        inner.map(of_dicts),
        inner.map(of_options),
        st.lists(inner, min_size=1, max_size=3).map(of_records),
        st.sampled_from([(set[int], st.frozensets(st.integers(), max_size=3).map(set))]),
        st.sampled_from([(frozenset[str], st.frozensets(text, max_size=3))]),
        st.tuples(st.sampled_from(PLAIN), st.sampled_from(PLAIN))
        .filter(lambda pair: _is_taken_apart(pair[0][0], pair[1][0]))
        .map(lambda pair: (pair[0][0] | pair[1][0], pair[0][1] | pair[1][1])),
    )


def _types_in(thing: Any) -> Any:
    """Return the type of a value, and those of its parts."""
    parts: list[Any] = []
    if isinstance(thing, (list, tuple)):
        parts = [*thing]
    elif isinstance(thing, dict):
        parts = [*thing.values()]
    elif dataclasses.is_dataclass(thing) or attrs.has(type(thing)):
        parts = [getattr(thing, name) for name in type(thing).__annotations__]
    return type(thing), [*map(_types_in, parts)]


types_and_values: st.SearchStrategy[TypeAndValues] = st.recursive(st.sampled_from(PLAIN), _compound, max_leaves=6)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data(), kind=types_and_values)
def test_what_the_schema_says_is_what_structured_as_makes(data: st.DataObject, kind: TypeAndValues) -> None:
    """The JSON of any object of a class fits the schema of the class, and becomes an equal object again."""
    cls: Any = dataclasses.make_dataclass("Holder", [("field", kind[0])])
    thing = cls(data.draw(kind[1]))
    value = unstructure(thing)
    assert compiled(schema_of(cls)).errors(value) == []
    made = outcome_of(value).structured_as(cls)
    assert made == thing
    assert _types_in(made) == _types_in(thing)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | finite | st.sampled_from(["a", "good", "2024-01-02", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "f0", "f1"]), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(kind=types_and_values, value=anything)
def test_what_does_not_fit_the_schema_becomes_no_object(kind: TypeAndValues, value: Any) -> None:
    """The two agree on every value; only dates, which a schema does not check, may be refused besides."""
    cls: Any = dataclasses.make_dataclass("Holder", [("field", kind[0])])
    structured = {"field": value}
    fits, reason = compiled(schema_of(cls)).accepts(structured), ""
    try:
        outcome_of(structured).structured_as(cls)
    except WireError as error:
        reason = error.reason
    assert fits or reason, write_json(value)
    assert not reason or not fits or "ISO 8601" in reason or "datetime" in reason, write_json(value)
