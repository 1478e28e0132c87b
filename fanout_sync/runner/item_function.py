"""The agent of `fanout_map`: it calls a function with the item of its spec."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..wire.item_spec import ItemSpec, PackedItem


class ItemFunction:
    """Calls a function with the item of a spec, which it unpickles first where that was sent to another process.

    Args:
        function: What to call.
        modules: The modules that were sent with it; see `sent_modules.modules_being_loaded`.
    """

    def __init__(self, function: Callable[[Any], Any], modules: dict[str, ModuleType] | None = None) -> None:
        self.function = function
        self._modules = modules

    def __call__(self, spec: ItemSpec) -> Any:
        item = spec.item
        if type(item) is PackedItem:
            from ..workers.pickling.loading import load_item  # imported lazily: slow, and on threads nobody needs it

            item = load_item(item.data, self._modules)
            spec.set_item(item)
        return self.function(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.function,)


def _received(function: Callable[[Any], Any]) -> ItemFunction:
    from ..workers.pickling.sent_modules import modules_being_loaded  # imported lazily, as above

    return ItemFunction(function, modules_being_loaded())
