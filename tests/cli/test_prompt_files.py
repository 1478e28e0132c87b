"""Steps that the command line makes of prompts, and of a template with rows."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fanout_sync import AgentStepSpec, OptionError, WireError
from fanout_sync.cli.inputs import Inputs
from fanout_sync.cli.prompts import read_prompts
from fanout_sync.cli.templates import RowReader, Template


def prompts_of(data: bytes) -> list[tuple[str, str]]:
    return [(spec.task_id, spec.prompt) for spec in read_prompts(io.BytesIO(data))]


def filled(template: str, rows: bytes, name: str = "rows.csv") -> list[str]:
    return [spec.prompt for spec in RowReader(Template(template, "prompt.txt"), name)(io.BytesIO(rows))]


# Prompts --------------------------------------------------------------------------------------------------------------


def test_each_line_is_a_prompt() -> None:
    """Its task id has the number of its line, and its agent is `command`."""
    first, second = read_prompts(io.BytesIO("hello\n  größer ☃ \n".encode()))
    assert first == AgentStepSpec("line-1", "command", "Line 1", "hello")
    assert second.prompt == "  größer ☃ "


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        (b"", []),
        (b"\n \n\t\n", []),
        (b"a\r\nb\r\n", [("line-1", "a"), ("line-2", "b")]),
        (b"a\n\nb", [("line-1", "a"), ("line-3", "b")]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [("line-1", "a"), ("line-2", "\ufeffb")]),
        ("a\u2028b\x0cc\x85d\n".encode(), [("line-1", "a\u2028b\x0cc\x85d")]),
        (b'{"task_id": 1\n', [("line-1", '{"task_id": 1')]),
    ],
)
def test_lines_end_where_an_editor_ends_them(data: bytes, prompts: list[tuple[str, str]]) -> None:
    """Blank lines are skipped; a line may hold anything else."""
    assert prompts_of(data) == prompts


def test_a_line_that_is_not_utf8_is_refused() -> None:
    """The error has its number, and where in the line."""
    with pytest.raises(WireError, match=r"expected UTF-8, got invalid start byte at byte 3") as caught:
        prompts_of(b"good\nno\xff\n")
    assert caught.value.line == 2


# Templates ------------------------------------------------------------------------------------------------------------


def test_values_of_a_csv_file_stand_in_the_template() -> None:
    """Quotes, commas and line ends in a value are part of it; a value with braces is not filled again."""
    rows = b'name,what\r\nBo,"a ""quoted"", long\nvalue"\n{what},{name}\n'
    assert filled("{name}: {what}", rows) == ['Bo: a "quoted", long\nvalue', "{what}: {name}"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("rows.csv", b"a,b c\n1,2\n\n"),
        ("rows.CSV", b"\xef\xbb\xbfa,b c\n1,2\n"),
        ("rows.tsv", b"a\tb c\n1\t2\n"),
        ("rows.jsonl", b'\n{"a": "1", "b c": 2}\n'),
    ],
)
def test_rows_in_each_format(name: str, rows: bytes) -> None:
    """The ending of the name tells the format; blank lines are skipped; a name may have a space."""
    assert filled("{a}{b c}", rows, name) == ["12"]


def test_values_that_are_no_strings_stand_there_as_json() -> None:
    """`null` is nothing."""
    rows = b'{"a": {"x": [1, true]}, "b": null, "c": "\\u00e9", "d": 1.50}\n'
    assert filled("{a}|{b}|{c}|{d}", rows, "r.jsonl") == ['{"x": [1, true]}||é|1.5']


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ('{"json": {"a": {a}}}', '{"json": {"a": 1}}'),
        ("f'{x}' {} { a} {a }", "f'{x}' {} { a} {a }"),
        ("{{a}} is {a}", "{a} is 1"),
        ("{{b}}", "{{b}}"),
    ],
)
def test_other_braces_stay(template: str, prompt: str) -> None:
    """Only a column in braces is filled in; twice in braces, it is not."""
    assert filled(f"{template} {{a}}", b"a\n1\n") == [f"{prompt} 1"]


@pytest.mark.parametrize(
    ("name", "rows", "line", "said"),
    [
        ("r.csv", b"a,b\n1\n", 2, "expected 2 values, one for each column, got 1"),
        ("r.csv", b'a,b\n1,"2\n3"\n1,2,3\n', 4, "expected 2 values, one for each column, got 3"),
        ("r.csv", b"", 1, "the first line must have the names of the columns, and is empty"),
        ("r.csv", b"a,a\n1,2\n", 1, "two columns have the name 'a'"),
        ("r.csv", b'a\n"1\n', 2, "unexpected end of data"),
        ("r.csv", b"a\n1\n\xff\n", 3, "expected UTF-8"),
        ("r.jsonl", b'{"a": 1}\n{"b": 1}\n', 2, "the row has no 'a', which the template names"),
        ("r.jsonl", b'{"a": 1}\n[1]\n', 2, "expected a JSON object, got [1]"),
        ("r.jsonl", b'{"a": 1}\n{"a": \n', 2, ""),
        ("r.jsonl", b'{"a": NaN}\n', 1, "expected a finite number"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(name: str, rows: bytes, line: int, said: str) -> None:
    """The error has the number of the line, and what is wrong with it."""
    with pytest.raises(WireError) as caught:
        filled("{a}", rows, name)
    assert caught.value.line == line
    assert said in str(caught.value)


def test_a_template_that_names_no_column_is_refused() -> None:
    """Each step would have the same prompt."""
    with pytest.raises(OptionError, match=r"prompt\.txt names no column of the rows; there are: \{a\}, \{b\}"):
        filled("{c}", b"a,b\n1,2\n")


def test_a_long_value_is_no_fault() -> None:
    """Documents are longer than what the csv module allows by itself."""
    assert len(filled("{a}", b"a\n" + b"x" * 300_000 + b"\n")[0]) == 300_000


# Which input ----------------------------------------------------------------------------------------------------------


def test_the_name_tells_steps_from_prompts(tmp_path: Path) -> None:
    """A name that ends in .txt is one of prompts; `--prompts` takes any name."""
    for name in ("a.txt", "b.TXT", "c.jsonl", "d"):
        (tmp_path / name).write_text("hello\n")
    for inputs in (
        Inputs(str(tmp_path / "a.txt")),
        Inputs(str(tmp_path / "b.TXT")),
        Inputs(None, prompts=str(tmp_path / "d")),
        Inputs(None, prompts=str(tmp_path / "c.jsonl")),
    ):
        with inputs.open() as source:
            assert source.count() == 1
    for name in ("c.jsonl", "d"):
        with Inputs(str(tmp_path / name)).open() as source, pytest.raises(WireError, match=f"{name}:1: "):
            source.count()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (Inputs(None), "nothing to run: give STEPS.jsonl"),
        (Inputs("s.jsonl", prompts="p"), "STEPS and --prompts cannot be given together"),
        (Inputs("s.jsonl", template="t", rows="r.csv"), "STEPS and --rows cannot be given together"),
        (Inputs(None, template="t"), "--template needs --rows"),
        (Inputs(None, rows="r.csv"), "--rows needs --template"),
        (Inputs(None, template="missing.txt", rows="r.csv"), "cannot read missing.txt: No such file"),
        (Inputs(None, prompts="missing"), "cannot read missing: No such file"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(inputs: Inputs, said: str) -> None:
    """The message names the options."""
    with pytest.raises(OptionError) as caught:
        inputs.open()
    assert said in str(caught.value)


def test_rows_need_a_known_ending(tmp_path: Path) -> None:
    """There is no guessing."""
    (tmp_path / "t.txt").write_text("{a}")
    with pytest.raises(OptionError, match=r"--rows must be a file whose name ends with one of \.csv, \.tsv, \.jsonl"):
        Inputs(None, template=str(tmp_path / "t.txt"), rows="rows.xlsx").open()
