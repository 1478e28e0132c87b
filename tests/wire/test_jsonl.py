"""JSON Lines files: reading specs and writing outcomes, one line at a time."""

from __future__ import annotations

import gc
import io
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fanout_sync.errors import WireError
from fanout_sync.records.steps import AgentStepSpec, StepOutcome
from fanout_sync.wire.jsonl import read_specs, write_outcomes


def spec(number: int, prompt: str = "p") -> AgentStepSpec:
    return AgentStepSpec(f"t{number}", "a", "d", prompt)


def outcome(number: int, structured: Any = None) -> StepOutcome:
    return StepOutcome(f"t{number}", "s", "a", "é\n\u2028", True, structured)


SPECS = [spec(number) for number in range(3)]
TEXT = "".join(one.to_json() + "\n" for one in SPECS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "specs.jsonl"


# --- reading ----------------------------------------------------------------------------------------------------------


def test_specs_are_read_from_a_path(path: Path) -> None:
    """A path may be a `str` or a `Path`."""
    path.write_text(TEXT, encoding="utf-8")
    assert list(read_specs(path)) == SPECS
    assert list(read_specs(str(path))) == SPECS


def test_specs_are_read_from_open_files(path: Path) -> None:
    """A text file, a binary file and files in memory are all read, and left open."""
    path.write_text(TEXT, encoding="utf-8")
    with path.open("rb") as binary, path.open(encoding="utf-8") as text:
        for file in (binary, text, io.BytesIO(TEXT.encode()), io.StringIO(TEXT)):
            assert list(read_specs(file)) == SPECS
            assert not file.closed


def test_reading_starts_at_the_position_of_the_file() -> None:
    """Lines that were read from the file before are not read again, and are not counted."""
    file = io.StringIO("a header\n" + TEXT + "{}\n")
    file.readline()
    specs = read_specs(file)
    assert [next(specs) for _ in SPECS] == SPECS
    with pytest.raises(WireError) as caught:
        next(specs)
    assert caught.value.line == 4


def test_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """`"-"` reads bytes from standard input, whatever its encoding, and names it in errors."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(spec(0, "é").to_json().encode() + b"\n{}"), "ascii"))
    specs = read_specs("-")
    assert next(specs) == spec(0, "é")
    with pytest.raises(WireError, match=r"^<stdin>:2: task_id: missing"):
        next(specs)
    assert not sys.stdin.closed


def test_dash_works_with_a_standard_input_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `sys.stdin` is replaced by a file without a `buffer`, it is read as text."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT))
    assert list(read_specs("-")) == SPECS


def test_a_missing_file_is_an_error_at_once(path: Path) -> None:
    """The call itself raises if there is no file, not the first `next`."""
    with pytest.raises(FileNotFoundError):
        read_specs(path)


@pytest.mark.parametrize("not_a_file", [3, None, [TEXT], TEXT.encode()])
def test_reading_from_neither_path_nor_file_is_refused_at_once(not_a_file: Any) -> None:
    """A file descriptor, a list of lines or the text itself is refused; the error says what is expected."""
    with pytest.raises(TypeError, match="expected a path, '-' or an open file"):
        read_specs(not_a_file)


def test_lines_are_read_one_at_a_time() -> None:
    """A line is read only when its spec is asked for: the file may be endless."""

    class Endless(io.RawIOBase):
        """A file that notes how many lines were taken from it."""

        taken = 0

        def read(self, size: int = -1) -> bytes:
            raise AssertionError("read() would never return")

        def __next__(self) -> bytes:
            self.taken += 1
            return spec(self.taken).to_json().encode() + b"\n"

    file = Endless()
    specs = read_specs(file)  # type: ignore[arg-type]
    assert file.taken == 0
    assert [next(specs) for _ in range(3)] == [spec(1), spec(2), spec(3)]
    assert file.taken == 3


def test_blank_lines_are_skipped_and_counted() -> None:
    """Lines of white space are no specs, but count as lines in errors."""
    file = io.StringIO(f"\n{spec(0).to_json()}\n \t\r\n\n{spec(1).to_json()}\n\n{{\n")
    specs = read_specs(file)
    assert [next(specs), next(specs)] == [spec(0), spec(1)]
    with pytest.raises(WireError) as caught:
        next(specs)
    assert caught.value.line == 7


@pytest.mark.parametrize("text", ["", "\n\n", "\r\n", " "])
def test_a_file_without_specs_gives_none(text: str) -> None:
    """An empty input is no error."""
    assert list(read_specs(io.StringIO(text))) == []
    assert list(read_specs(io.BytesIO(text.encode()))) == []


def test_the_last_line_needs_no_newline() -> None:
    """The last line is read even if no newline follows it."""
    assert list(read_specs(io.StringIO(TEXT.rstrip("\n")))) == SPECS


def test_windows_line_ends_are_tolerated(path: Path) -> None:
    r"""A line may end with `\r\n`."""
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert list(read_specs(path)) == SPECS


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_newlines_separate_lines(separator: str, path: Path) -> None:
    """JSON strings may hold characters that `str.splitlines` treats as line ends."""
    one = spec(0, f"a{separator}b")
    path.write_text(one.to_json() + "\n", encoding="utf-8")
    assert list(read_specs(path)) == [one]
    assert list(read_specs(io.StringIO(one.to_json()))) == [one]


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b'{"task_id":"t","agent":1,"description":"d","prompt":"p"}', "agent", "expected a string"),
        (b'{"task_id":"t"}', "agent", "missing"),
        (b'{"task_id":', "", "no valid JSON"),
        (b"[]", "", "expected an object"),
        (b'{"task_id":"\xff"}', "", "expected UTF-8"),
        (b'{"task_id":"t","task_id":"t"}', "task_id", "duplicate key"),
        (b"{} {}", "", "no valid JSON"),
    ],
)
def test_errors_name_file_line_and_field(path: Path, line: bytes, field: str, reason: str) -> None:
    """The error for a bad line comes after all specs before it; reading ends there."""
    path.write_bytes(TEXT.encode() + b"\n" + line + b"\n" + TEXT.encode())
    specs = read_specs(path)
    assert [next(specs) for _ in SPECS] == SPECS
    with pytest.raises(WireError) as caught:
        next(specs)
    assert (caught.value.source, caught.value.line, caught.value.field) == (str(path), 5, field)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{path}:5: ")
    assert list(specs) == []


def test_an_undecodable_line_of_a_text_file_is_named(path: Path) -> None:
    """A text file decodes many lines at once, but the error has the number of the line at fault."""
    path.write_bytes(TEXT.encode() * 2000 + b'{"task_id":"\xff"}\n')
    with path.open(encoding="utf-8") as file, pytest.raises(WireError, match="expected utf-8") as caught:
        list(read_specs(file))
    assert (caught.value.source, caught.value.line) == (str(path), 6001)


def test_a_byte_order_mark_is_refused(path: Path) -> None:
    """The error says that there is a byte order mark, instead of `no valid JSON`."""
    path.write_text(TEXT, encoding="utf-8-sig")
    with pytest.raises(WireError, match="byte order mark") as caught:
        next(read_specs(path))
    assert caught.value.line == 1


@pytest.mark.parametrize("name", [None, 3, "specs of mine"])
def test_errors_name_a_file_by_its_name_if_that_is_a_str(name: Any) -> None:
    """The `name` of a file that was opened from a descriptor is a number; a file in memory has none."""
    file = io.BytesIO(b"{}")
    file.name = name
    with pytest.raises(WireError) as caught:
        next(read_specs(file))
    assert caught.value.source == (name if isinstance(name, str) else "<stream>")


def test_the_file_is_closed_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`read_specs` closes the file it opened: after the last line, at an error, on `close`, and when it is dropped."""
    opened: list[io.IOBase] = []
    real_open = Path.open

    def noting_open(self: Path, *args: Any, **options: Any) -> Any:
        opened.append(real_open(self, *args, **options))
        return opened[-1]

    monkeypatch.setattr(Path, "open", noting_open)

    def exhaust(specs: Any) -> None:
        assert len(list(specs)) == 3

    def read_one_and_close(specs: Any) -> None:
        next(specs)
        specs.close()

    def close_unread(specs: Any) -> None:
        specs.close()

    def drop_unread(specs: Any) -> None:
        del specs

    path.write_bytes(TEXT.encode())
    for use in (exhaust, read_one_and_close, close_unread, drop_unread):
        use(read_specs(path))
        gc.collect()
        assert opened[-1].closed, use
    path.write_bytes(b"{}")
    with pytest.raises(WireError):
        next(read_specs(path))
    assert opened[-1].closed


# --- writing ----------------------------------------------------------------------------------------------------------


OUTCOMES = [outcome(number) for number in range(3)]
WRITTEN = "".join(one.to_json() + "\n" for one in OUTCOMES)


def test_outcomes_are_written_to_a_path(path: Path) -> None:
    r"""One line each, UTF-8, ended by `\n`, in place of what was there."""
    path.write_text("old", encoding="utf-8")
    write_outcomes(path, OUTCOMES)
    assert path.read_bytes() == WRITTEN.encode()
    write_outcomes(str(path), OUTCOMES[:1])
    assert path.read_bytes() == (OUTCOMES[0].to_json() + "\n").encode()


def test_outcomes_are_written_to_open_files(tmp_path: Path) -> None:
    """Text and binary files are written at their position, flushed and left open."""
    memory, text_memory = io.BytesIO(b"> "), io.StringIO("> ")
    memory.seek(2)
    text_memory.seek(2)
    for file in (memory, text_memory):
        write_outcomes(file, OUTCOMES)
        assert not file.closed
    assert memory.getvalue() == b"> " + WRITTEN.encode()
    assert text_memory.getvalue() == "> " + WRITTEN
    with (tmp_path / "binary").open("wb") as binary, (tmp_path / "text").open("w", encoding="utf-8") as text:
        write_outcomes(binary, OUTCOMES)
        write_outcomes(text, OUTCOMES)
        assert (tmp_path / "binary").read_bytes() == WRITTEN.encode()
        assert (tmp_path / "text").read_bytes() == WRITTEN.encode()


def test_temporary_files_are_recognised_as_text_or_binary() -> None:
    """A wrapper from `tempfile` is text or binary, although its class does not show it."""
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as text, tempfile.NamedTemporaryFile() as binary:
        write_outcomes(text, OUTCOMES)
        write_outcomes(binary, OUTCOMES)
        text.seek(0)
        binary.seek(0)
        assert text.read() == WRITTEN
        assert binary.read() == WRITTEN.encode()


def test_dash_is_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """`"-"` writes UTF-8 to standard output, whatever its encoding, after what was printed before."""
    memory = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(memory, "ascii"))
    sys.stdout.write("before\n")
    write_outcomes("-", OUTCOMES)
    sys.stdout.write("after\n")
    sys.stdout.flush()
    assert memory.getvalue() == b"before\n" + WRITTEN.encode() + b"after\n"


def test_dash_works_with_a_standard_output_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """If `sys.stdout` is replaced by a file in memory, that is written."""
    write_outcomes("-", OUTCOMES)
    assert capsys.readouterr().out == WRITTEN


def test_written_outcomes_can_be_read(path: Path) -> None:
    """Each line that was written is read as an equal outcome."""
    write_outcomes(path, OUTCOMES)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [StepOutcome.from_json(line) for line in lines if line] == OUTCOMES


def test_each_outcome_is_written_before_the_next_is_asked_for(path: Path) -> None:
    """A program that follows the file sees each line at once, and a crash loses none of them."""

    def observed() -> Iterator[StepOutcome]:
        for number, one in enumerate(OUTCOMES):
            assert path.read_bytes().count(b"\n") == number
            yield one

    write_outcomes(path, observed())
    assert path.read_bytes() == WRITTEN.encode()


def test_what_was_written_stays_when_the_iterable_raises(path: Path) -> None:
    """The error of the iterable is raised, and the lines before it are in the file."""

    def failing() -> Iterator[StepOutcome]:
        yield OUTCOMES[0]
        raise RuntimeError("the source broke")

    with path.open("w", encoding="utf-8") as file:
        with pytest.raises(RuntimeError, match="the source broke"):
            write_outcomes(file, failing())
        assert path.read_text(encoding="utf-8") == OUTCOMES[0].to_json() + "\n"


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_outcome_that_cannot_be_carried_is_named(path: Path, in_memory: bool) -> None:
    """The error has the index and the field; the lines before it are written, and no part of its own."""
    target: Any = io.StringIO() if in_memory else path
    with pytest.raises(WireError) as caught:
        write_outcomes(target, [outcome(0), outcome(1, {"x": [object()]}), outcome(2)])
    assert caught.value.field == "structured.x[0]"
    assert caught.value.reason.endswith("(outcomes[1])")
    assert caught.value.source == ("<stream>" if in_memory else str(path))
    kept = target.getvalue() if in_memory else path.read_text(encoding="utf-8")
    assert kept == outcome(0).to_json() + "\n"


@pytest.mark.parametrize("item", [None, {"task_id": "t"}, "{}"])
def test_an_item_that_is_no_outcome_is_named(path: Path, item: Any) -> None:
    """An item of another type, such as the `None` of a pipeline, is refused; the error has its index."""
    with pytest.raises(TypeError, match=rf"outcomes\[1\] must be a StepOutcome, got {type(item).__name__}"):
        write_outcomes(path, [outcome(0), item])


def test_an_argument_that_is_not_iterable_leaves_the_file_unchanged(path: Path) -> None:
    """Outcomes that are not iterable are refused before the file is opened."""
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(TypeError, match="not iterable"):
        write_outcomes(path, 3)  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("not_a_file", [3, None, [], b"path"])
def test_writing_to_neither_path_nor_file_is_refused(not_a_file: Any) -> None:
    """A target of another type is refused; the error says what is expected."""
    with pytest.raises(TypeError, match="expected a path, '-' or an open file"):
        write_outcomes(not_a_file, [])


@pytest.mark.parametrize("outcomes", [[], ()])
def test_no_outcomes_make_an_empty_file(path: Path, outcomes: Iterable[StepOutcome]) -> None:
    """An empty run is written as an empty file."""
    write_outcomes(path, outcomes)
    assert path.read_bytes() == b""
