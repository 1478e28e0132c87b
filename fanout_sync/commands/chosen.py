"""Which workflow of a journal is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import OptionError
from ..wording import did_you_mean

if TYPE_CHECKING:
    from ..journal import Journal

MAX_NAMED = 10


def chosen_workflow(journal: Journal, path: str, name: str | None) -> str:
    """Return the id of the workflow with that name, or of the only one.

    Raises:
        OptionError: There is no such one, or no name where there are several; those that exist are named.
        JournalError: The journal cannot be read.
    """
    known = journal.workflows()
    if name in known:
        return name
    if name is None and len(known) == 1:
        return known[0]
    if not known:
        raise OptionError(f"there is no workflow in {path}")
    named = ", ".join(map(repr, known[:MAX_NAMED])) + (", …" if len(known) > MAX_NAMED else "")
    if name is None:
        raise OptionError(f"there are several workflows in {path}, name one of them: {named}")
    hint = did_you_mean(name, known)
    raise OptionError(f"there is no workflow {name!r} in {path}{hint}; there {_are(known)} {named}")


def _are(known: list[str]) -> str:
    return "is" if len(known) == 1 else "are"
