"""The hash of an item that has no JSON."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scripts import run_python

from fanout_sync.journal.item_hash import hash_of

SCRIPT = """
from decimal import Decimal
from pathlib import Path
from fanout_sync.journal.item_hash import hash_of
print(hash_of([{"b", "a", "c"}, {"x": Decimal("1.5"), "y": frozenset("abc")}, Path("p"), ("t", b"b")]))
"""


def test_it_is_the_same_in_every_process() -> None:
    """The seed by which Python orders sets of strings has no influence."""
    hashes = {run_python("-c", SCRIPT, environment={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2", "3")}
    value = [{"c", "b", "a"}, {"y": frozenset("cba"), "x": Decimal("1.5")}, Path("p"), ("t", b"b")]
    assert hashes == {f"{hash_of(value)}\n"}


def test_equal_parts_need_not_be_one_object() -> None:
    """Whether two equal texts or tuples are one object depends on how they were made."""
    text = "".join(["a", "b"])
    assert hash_of([text, text, (text,)]) == hash_of(["ab", "".join(["a", "b"]), ("ab",)])


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), [1]), ({1}, frozenset({1})), (b"a", "a"), ({1: 2}, {2: 1}), (Path("a"), Path("b")), ((1, 2), (2, 1))],
)
def test_different_items_differ(one: Any, other: Any) -> None:
    """An item of another type or with another value has another hash."""
    assert hash_of(one) != hash_of(other)


def test_a_cycle_ends() -> None:
    """An object may refer to itself."""
    cycle: list[Any] = [{}]
    cycle[0]["cycle"] = (cycle,)
    assert hash_of(cycle)
