"""The identity of a step: a hash by which a journal tells whether a spec has changed since it was journalled."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..errors import WireError
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..wire.item_spec import ItemSpec, json_of
from ..wire.strict_json import check_json, quoted

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class SpecNotJournallable(Exception):
    """A spec has no identity, because JSON cannot carry one of its fields; the index and the field are named."""


def identity_of(workflow_id: str, spec: AgentStepSpec) -> str:
    """Return the identity of a step: a SHA-256, in hex, over canonical JSON of `workflow_id` and every field of `spec`.

    Canonical: one object, keys sorted at every depth, no white space, UTF-8; an optional field that is `None` is null.
    A step of `fanout_map` whose item is no `str` has an `item` instead of a prompt: its JSON, or a hash of its pickle.

    Raises:
        WireError: JSON cannot carry a field of the spec; the field is named.
    """
    schema, parent, max_steps = "null", "null", "null"
    if spec.output_schema is not None:
        check_json(spec.output_schema, "output_schema")
        schema = _CANONICAL.encode(spec.output_schema)
    if spec.parent_session_id is not None:
        parent = quoted(spec.parent_session_id)
    if spec.max_steps is not None:
        max_steps = str(int(spec.max_steps))
    if type(spec) is ItemSpec and not isinstance(spec.item, str):
        item, prompt = f'"item":{_item_text(spec.item)},', "null"
    else:
        item, prompt = "", quoted(spec.prompt)
    canonical = (
        f'{{"agent":{quoted(spec.agent)},"description":{quoted(spec.description)},{item}"max_steps":{max_steps},'
        f'"output_schema":{schema},"parent_session_id":{parent},"prompt":{prompt},'
        f'"task_id":{quoted(spec.task_id)},"workflow_id":{quoted(workflow_id)}}}'
    )
    try:
        return hashlib.sha256(canonical.encode()).hexdigest()
    except UnicodeEncodeError:
        spec.to_json()  # raises an error that names the field
        raise


def always_has_identity(spec: AgentStepSpec) -> bool:
    """Return whether `identity_of` certainly succeeds, as it does for nearly all specs; fast."""
    return (
        (type(spec) is not ItemSpec or isinstance(spec.item, str))
        and spec.output_schema is None
        and spec.prompt.isascii()
        and spec.task_id.isascii()
        and spec.description.isascii()
        and spec.agent.isascii()
        and (spec.parent_session_id is None or spec.parent_session_id.isascii())
    )


def _item_text(item: Any) -> str:
    """Return what stands for an item: canonical JSON, or the hash of its pickle as a string, which no item here is."""
    if json_of(item) is not None:
        return _CANONICAL.encode(item)
    from .item_hash import hash_of  # imported lazily: few items have no JSON

    try:
        return f'"{hash_of(item)}"'
    except Exception as error:  # code of the item's class
        raise WireError(f"the item has no JSON, and cannot be pickled either: {StepError.of(error)}", "item") from error
