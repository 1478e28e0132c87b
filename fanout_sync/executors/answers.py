"""From what a step returned to its outcome. What no outcome can hold is kept as text: it may have been paid for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from attrs import evolve

from ..errors import WireError
from ..formatting import describe, printable
from ..records.status import StepError
from ..records.steps import AgentStepSpec, StepOutcome, session_id_of
from ..wire.strict_json import check_json, check_text, write_json
from .full_repr import full_repr

MOST_BYTES = 2**20
"""How much of an answer that no outcome can hold is kept, in bytes of UTF-8."""

_EXPECTED = "return a str, a StepOutcome or a JSON value"
_WAY_OUT = "make JSON data of it, as by dataclasses.asdict(…), model.model_dump(mode='json') or array.tolist()"


class InvalidOutcome(StepOutcome):
    """The failed outcome of a step whose answer no outcome can hold; the step then has the status `invalid`.

    It is returned, not raised: so an executor that calls another one passes it on like any failed outcome.

    The first line of its `output` is the reason. The other lines have what came.
    """

    __slots__ = ()

    @property
    def reason(self) -> str:
        """Why it is invalid, and what to return instead."""
        return self.output.partition("\n")[0]

    @classmethod
    def because(cls, spec: AgentStepSpec, reason: str, kept: str = "") -> InvalidOutcome:
        """Return the outcome of a step.

        Args:
            spec: The step.
            reason: Why its answer is invalid.
            kept: The answer as text; it is cut after `MOST_BYTES`.
        """
        line = " ".join(reason.splitlines())
        output = line if kept in line else f"{line}\n{_cut(kept)}"
        return cls(spec.task_id, session_id_of(spec.task_id), spec.agent, printable(output), False)


class RefusedStep(InvalidOutcome):
    """The failed outcome of a step that its executor cannot run, as another attempt could not either."""

    __slots__ = ()


class SchemaFault(RefusedStep):
    """The failed outcome of a step that was not run, because the `output_schema` of its spec is no JSON Schema."""

    __slots__ = ()


class FinalOutcome(StepOutcome):
    """A failed outcome that no other attempt would change, such as after a wrong key: `retry` does not cover it."""

    __slots__ = ()

    def plain(self) -> StepOutcome:
        """Return it as the caller gets it."""
        return StepOutcome(self.task_id, self.session_id, self.agent, self.output, self.success, self.structured)


def outcome_of(spec: AgentStepSpec, value: Any) -> StepOutcome:
    """Return the outcome of a step whose function has returned `value`; an `InvalidOutcome` if that has no JSON."""
    if isinstance(value, StepOutcome):
        return value if value.structured is None else with_json(value)
    if isinstance(value, str):
        return StepOutcome.completed(spec, value if type(value) is str else str.__str__(value))
    try:
        if value is not None:
            return StepOutcome.completed(spec, write_json(value), value)
    except Exception:  # not only WireError: a dict or list may be of a class of the caller's
        return _converted(spec, value)
    reason = f"agent {spec.agent!r} returned None; {_EXPECTED}, or '' if there is nothing to say"
    return InvalidOutcome.because(spec, reason)


def with_json(outcome: StepOutcome) -> StepOutcome:
    """Return the outcome with `structured` as JSON data; unchanged if it is that already, or cannot become that."""
    try:
        check_json(outcome.structured, "structured")
    except Exception:  # not only WireError, as above
        try:
            if _fault_of_type(outcome.structured) is None:
                from ..wire.unstructure import unstructure  # imported lazily, as below

                structured = unstructure(outcome.structured)
                check_json(structured, "structured")
                return evolve(outcome, structured=structured)
        except Exception:
            return outcome  # `refused` says what is wrong
    return outcome


def _converted(spec: AgentStepSpec, value: Any) -> StepOutcome:
    try:
        if (fault := _fault_of_type(value)) is not None:
            raise WireError(fault)
        from ..wire.unstructure import BYTES, unstructure  # imported lazily: slow, and few answers need it

        structured = unstructure(value)
        if isinstance(value, BYTES) and isinstance(structured, str):
            return StepOutcome.completed(spec, structured)
        return StepOutcome.completed(spec, write_json(structured), structured)
    except Exception as error:  # also from methods of the value
        why = printable(str(error)) if isinstance(error, WireError) else f"converting it raised {StepError.of(error)}"
    reason = f"agent {spec.agent!r} returned {describe(value)}, which is no JSON value ({why}); {_EXPECTED}"
    return InvalidOutcome.because(spec, reason, _whole(value))


def _fault_of_type(value: Any) -> str | None:
    """Return why a value is refused whatever it holds; `None` if it is not."""
    if isinstance(value, (Iterator, AsyncIterator)):
        return "an iterator is not read: return a list of its items"
    return "a spec is no answer" if isinstance(value, AgentStepSpec) else None


def carried(spec: AgentStepSpec, outcome: Any) -> tuple[Any, InvalidOutcome | None]:
    """Return the outcome that a step returned, with `structured` as JSON data; or the invalid one of what it returned.

    The second is `None` if the wire can carry the first.
    """
    try:
        is_plain = _is_plain(outcome)
    except BaseException:  # from an incomplete outcome: `refused` finds out what is wrong with it
        is_plain = False
    if is_plain:
        return outcome, None
    invalid = refused(spec, outcome)
    if invalid is None or not isinstance(outcome, StepOutcome):
        return outcome, invalid
    converted = with_json(outcome)
    return converted, refused(spec, converted)


def _is_plain(outcome: Any) -> bool:
    """Whether `outcome` is of the most common kind, for which this fast check is enough."""
    return (
        type(outcome) is StepOutcome
        and outcome.structured is None
        and outcome.output.isascii()
        and outcome.task_id.isascii()
        and outcome.session_id.isascii()
        and outcome.agent.isascii()
        and isinstance(outcome.success, bool)
    )


def refused(spec: AgentStepSpec, outcome: Any) -> InvalidOutcome | None:
    """Return the invalid outcome of a step whose executor has returned `outcome`; `None` if that is a valid one."""
    try:
        fault = _fault_of(outcome)
    except BaseException as error:  # from user code: an incomplete outcome, or a dict whose methods raise
        fault = f"the step returned {describe(outcome)}, which cannot be read: {StepError.of(error)}"
    if fault is not None:
        return InvalidOutcome.because(spec, fault, _contents(outcome))
    return outcome if isinstance(outcome, InvalidOutcome) and not outcome.success else None


def _fault_of(outcome: Any) -> str | None:
    if not isinstance(outcome, StepOutcome):
        return f"the step returned {describe(outcome)}, expected a StepOutcome, as of StepOutcome.completed(spec, text)"
    try:
        for name in ("task_id", "session_id", "agent", "output"):
            check_text(getattr(outcome, name), name)
        check_json(outcome.structured, "structured")
    except WireError as error:
        way_out = "" if not error.field.startswith("structured") else f"; {_WAY_OUT}"
        return f"the step returned an outcome that the wire cannot carry: {error}{way_out}"
    success: Any = outcome.success
    return None if isinstance(success, bool) else f"success is {describe(success)}, expected a bool"


def _contents(outcome: Any) -> str:
    """Return the output of an outcome and a `repr` of what is structured; of anything else the `repr`."""
    if not issubclass(type(outcome), StepOutcome):
        return _whole(outcome)
    output, structured = (getattr(outcome, name, None) for name in ("output", "structured"))
    text = output if isinstance(output, str) else _whole(output)
    return text if structured is None else f"{_cut(text)}\nstructured: {_whole(structured)}"


def _whole(value: Any) -> str:
    return full_repr(value, 2 * MOST_BYTES)


def _cut(text: str) -> str:
    data = text.encode("utf-8", "backslashreplace") if len(text) > MOST_BYTES // 4 else b""
    if len(data) <= MOST_BYTES:
        return text
    return f"{data[:MOST_BYTES].decode('utf-8', 'ignore')}… (cut: the first {MOST_BYTES} of {len(data)} bytes)"
