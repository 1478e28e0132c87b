"""Steps from a template of a prompt, and a file with a row of values for each step."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from attrs import frozen

from ..errors import OptionError, WireError
from ..records.steps import AgentStepSpec
from ..wire.strict_json import parse_json
from .prompts import AGENT, BYTE_ORDER_MARK, decoded

Row = Mapping[str, str]
"""The values of one step by the names of their columns."""

MAX_VALUE_CHARS = 2**31 - 1
"""How long a value in a CSV file may be; `csv` allows 131 072 characters unless it is told otherwise."""

_PLACEHOLDER = re.compile(r"\{\{([^{}\n]+)\}\}|\{([^{}\n]+)\}")


@frozen
class Template:
    """The text of a prompt, in which `{column}` stands for a value of the row.

    A brace that belongs to no column stays as it is, so that JSON and code may stand in a template. `{{column}}` stands
    for the text `{column}` itself.

    Attributes:
        text: The text.
        name: The name of its file, for messages.
        stat: The `os.fstat` of the file; `None` if there is none.
    """

    text: str
    name: str
    stat: os.stat_result | None = None

    @classmethod
    def of_file(cls, path: str) -> Template:
        """Read a template.

        Raises:
            OptionError: The file cannot be read, or is not UTF-8.
        """
        try:
            with Path(path).open("rb") as file:
                text, stat = file.read().decode("utf-8"), os.fstat(file.fileno())
        except OSError as error:
            raise OptionError(f"cannot read {path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise OptionError(f"{path}: expected UTF-8, got {error.reason} at byte {error.start + 1}") from None
        return cls(text.removeprefix(BYTE_ORDER_MARK), path, stat)

    def check(self, columns: Collection[str]) -> None:
        """Check that the template names a column.

        Raises:
            OptionError: It names none.
        """
        if not any(name in columns for _, name in _PLACEHOLDER.findall(self.text)):
            known = ", ".join(f"{{{name}}}" for name in columns)
            raise OptionError(f"{self.name} names no column of the rows; there are: {known or 'none'}")

    def filled(self, row: Row, columns: Collection[str]) -> str:
        """Return the text with the values of a row.

        Raises:
            KeyError: The row has no value for a column that the template names.
        """

        def value(found: re.Match[str]) -> str:
            escaped, name = found.groups()
            if (escaped or name) not in columns:
                return found[0]
            return f"{{{escaped}}}" if escaped else row[name]

        return _PLACEHOLDER.sub(value, self.text)


@frozen
class RowReader:
    """Makes steps of the rows of a file; their task ids are `"row-1"`, `"row-2"`, ….

    Attributes:
        template: The prompt.
        path: The file, whose name ends in .csv, .tsv or .jsonl.
    """

    template: Template
    path: str

    def __call__(self, file: BinaryIO) -> Iterator[AgentStepSpec]:
        """Yield a step for each row.

        The names of the columns are in the first line of a CSV file; of a JSONL file they are those of the first row.

        Raises:
            WireError: A row has more or fewer values than there are columns, is no JSON object, or lacks what the
                template names; it has the number of the line.
            OptionError: The template names no column.
        """
        columns: Collection[str] = ()
        for number, (line, row) in enumerate(_READERS[_ending_of(self.path)](file), start=1):
            if number == 1:
                columns = row.keys()
                self.template.check(columns)
            try:
                prompt = self.template.filled(row, columns)
            except KeyError as missing:
                raise WireError(f"the row has no {missing}, which the template names", "", "", line) from None
            yield AgentStepSpec(f"row-{number}", AGENT, f"Row {number}", prompt)

    def __attrs_post_init__(self) -> None:
        if _ending_of(self.path) not in _READERS:
            expected = ", ".join(_READERS)
            raise OptionError(f"--rows must be a file whose name ends with one of {expected}, got {self.path!r}")


def _ending_of(path: str) -> str:
    return PurePath(path).suffix.lower()


def _comma_separated(file: BinaryIO, delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(MAX_VALUE_CHARS)
    lines = (decoded(line, number) for number, line in enumerate(file, start=1))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = _columns(next(reader, None))
        for values in reader:
            if values:  # a blank line is no row
                yield reader.line_num, _row(columns, values, reader.line_num)
    except csv.Error as error:
        raise WireError(str(error), "", "", reader.line_num) from None


def _columns(names: list[str] | None) -> list[str]:
    if not names:
        raise WireError("the first line must have the names of the columns, and is empty", "", "", 1)
    for name in names:
        if names.count(name) > 1:
            raise WireError(f"two columns have the name {name!r}", "", "", 1)
    return names


def _row(columns: list[str], values: list[str], line: int) -> Row:
    if len(values) != len(columns):
        raise WireError(f"expected {len(columns)} values, one for each column, got {len(values)}", "", "", line)
    return dict(zip(columns, values, strict=True))


def _tab_separated(file: BinaryIO) -> Iterator[tuple[int, Row]]:
    return _comma_separated(file, "\t")


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, start=1):
        text = decoded(line, number)
        if not text.strip():
            continue
        try:
            value: Any = parse_json(text)
        except WireError as error:
            raise WireError(error.reason, error.field, "", number) from None
        if not isinstance(value, dict):
            raise WireError(f"expected a JSON object, got {text[:40]}", "", "", number)
        yield number, {name: _as_text(value[name]) for name in value}


def _as_text(value: Any) -> str:
    """Return a JSON value as it is to stand in a prompt."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_READERS = {".csv": _comma_separated, ".tsv": _tab_separated, ".jsonl": _json_lines}
