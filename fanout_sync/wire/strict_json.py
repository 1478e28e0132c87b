"""JSON as serde_json reads and writes it: strict and compact; every error is a `WireError`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from json import JSONDecodeError, JSONDecoder
from json.encoder import encode_basestring
from typing import Any

from ..errors import WireError
from ..records.steps import Json
from ..tracebacks import ShortTypeError

MAX_DEPTH = 127
"""How deep objects and arrays may nest, including the record's own object: serde_json refuses the 128th level."""

Place = list["str | int"]
"""The path to a value: keys and indices from the record down; it becomes text only in an error."""

quoted: Callable[[str], str] = encode_basestring
"""Returns a string as a JSON literal; characters that UTF-8 cannot carry stay as they are."""

_LITERALS = {None: "null", True: "true", False: "false"}
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_DROP = deque[str](maxlen=0).append  # discards the text, where a value is only checked

# --- writing ------------------------------------------------------------------------------------------------------


def write_json(value: Json) -> str:
    """Return `value` as compact JSON, as serde_json prints it: UTF-8 not escaped, floats as ryu writes them.

    Raises:
        WireError: Some part of it is nothing that JSON can carry; the error has the path to it.
    """
    pieces: list[str] = []
    _write(value, [], pieces.append)
    return "".join(pieces)


def check_json(value: Json, *path: str) -> Json:
    """Refuse a value that the wire cannot carry.

    Args:
        value: The value of a field of a record, or a whole record.
        path: The name of that field; none for a record.

    Returns:
        `value`, or `plain(value)` if any part of it has an uncommon type, such as `RepeatedKeys`.

    Raises:
        WireError: A key is no `str`; a value is no `dict`, `list`, `str`, `int`, finite `float`, `bool` or `None`;
            a string holds a lone surrogate; or the value nests deeper than `MAX_DEPTH`, as a cycle does.
    """
    if _is_plain(value, MAX_DEPTH - len(path)):
        return value
    _write(value, [*path], _DROP)
    return plain(value)


def check_text(value: str, *path: str | int) -> None:
    """Refuse a string that UTF-8 cannot carry.

    Raises:
        WireError: It holds a lone surrogate, such as `os.fsdecode` and `"surrogateescape"` produce.
    """
    if value.isascii():  # by far the fastest check, and true of most strings
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(value[error.start]):04X}"
        raise WireError(f"a lone surrogate ({surrogate}) at character {error.start} is no text", _shown(path)) from None


def _is_plain(value: Json, room: int) -> bool:
    """Whether `value` is valid and has only the most common JSON types: a fast check; `_write` is the full one."""
    kind = type(value)
    if kind is str:
        return value.isascii() or _is_text(value)
    if kind is dict:
        return room > 0 and all(
            type(key) is str and (key.isascii() or _is_text(key)) and _is_plain(item, room - 1)
            for key, item in value.items()
        )
    if kind is list:
        return room > 0 and all(_is_plain(item, room - 1) for item in value)
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(value.bit_length() <= 1024)  # the lowest limit that int() can have, 640 digits, is about 2100 bits
    return kind is bool or value is None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write(value: Json, path: Place, out: Callable[[str], object]) -> None:
    # Validates and writes in one pass. `path` is one list that grows and shrinks. When a value is refused, the list
    # stays as it is then, and is the path to that value.
    if isinstance(value, str):
        if not (value.isascii() or _is_text(value)):
            check_text(value, *path)
        out(encode_basestring(value))
    elif value is None or value is True or value is False:
        out(_LITERALS[value])
    elif isinstance(value, int):
        out(_int_text(value, path))
    elif isinstance(value, float):
        out(_float_text(value, path))
    elif isinstance(value, (dict, list)):
        if len(path) >= MAX_DEPTH:
            raise WireError(_TOO_DEEP, _shown(path[:1]))
        if isinstance(value, dict):
            _write_object(value, path, out)
        else:
            _write_array(value, path, out)
    else:
        raise WireError(f"expected a JSON value, got {described(value)}", _shown(path))


def _write_object(value: dict[str, Json], path: Place, out: Callable[[str], object]) -> None:
    lead = "{"
    for key, item in value.pairs if isinstance(value, RepeatedKeys) else value.items():
        if not isinstance(key, str):
            raise WireError(f"expected a string as key, got {described(key)}", _shown(path))
        path.append(key)
        if not (key.isascii() or _is_text(key)):
            check_text(key, *path)
        out(lead)
        out(encode_basestring(key))
        out(":")
        _write(item, path, out)
        path.pop()
        lead = ","
    out("}" if value else "{}")


def _write_array(value: list[Json], path: Place, out: Callable[[str], object]) -> None:
    lead = "["
    for index, item in enumerate(value):
        path.append(index)
        out(lead)
        _write(item, path, out)
        path.pop()
        lead = ","
    out("]" if value else "[]")


def _int_text(value: int, path: Place) -> str:
    # int.__repr__ (and float.__repr__ below) because an IntEnum or a numpy.float64 has a different repr() of its own.
    try:
        return int.__repr__(value)
    except ValueError:  # more digits than sys.get_int_max_str_digits(): int() could not read them back
        raise WireError(f"expected a shorter integer, got {described(value)}", _shown(path)) from None


def _float_text(value: float, path: Place) -> str:
    if not math.isfinite(value):
        raise WireError(f"expected a finite number, got {value}", _shown(path))
    # The digits are Python's; the notation is that of ryu, which the reference uses. Newer releases of serde_json use
    # zmij instead, and write 1e+16; all releases read both.
    mantissa, _, exponent = float.__repr__(value).partition("e")
    if not exponent:
        return mantissa
    if exponent == "-05":  # the only exponent that Python writes and ryu does not: 1.2e-05 is 0.000012
        sign = "-" if value < 0 else ""
        return f"{sign}0.0000{mantissa.lstrip('-').replace('.', '')}"
    return f"{mantissa}e{int(exponent)}"


# --- reading ------------------------------------------------------------------------------------------------------


class RepeatedKeys(dict[str, Json]):
    """An object whose text has a key more than once. It has the last value of each key; `pairs` has all of them.

    A record in which a known field is repeated is refused; everywhere else `plain` turns this into a `dict`.
    """

    def __init__(self, pairs: list[tuple[str, Json]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def plain(value: Json) -> Json:
    """Return a copy of a checked value with plain dicts and lists; of a repeated key the last value counts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def parse_json(text: str | bytes) -> Json:
    """Read one JSON value. A value that no record can hold is not refused here, but when it is put into a record.

    Args:
        text: The whole text; `bytes` are UTF-8 without a byte order mark.

    Returns:
        The value. An object that repeats a key is a `RepeatedKeys`. `-0` is `-0.0`, as in serde_json; all other
        integers are an `int`, of any length that `int()` accepts. A longer integer, and a number too large for a
        `float`, become infinity: serde_json refuses them in a known field and ignores them in an unknown one. The
        same holds for escaped lone surrogates, and for nesting beyond `MAX_DEPTH` that the parser can still read.

    Raises:
        WireError: The text is no JSON; `NaN` and `Infinity` are none, and the error has the path to them. Or the name
            of a field of the outermost object holds a lone surrogate.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            reason = f"expected UTF-8, got the byte 0x{text[error.start]:02x} at byte {error.start} ({error.reason})"
            raise WireError(reason) from None
    elif not isinstance(text, str):
        raise ShortTypeError(f"JSON is read from str or bytes, got {type(text).__name__}")
    if text.startswith("\ufeff"):
        raise WireError("starts with a byte order mark (U+FEFF); expected UTF-8 without one")
    try:
        try:
            value = _STRICT.decode(text)
        except WireError:  # the hook for NaN does not get the path: read the text again with NaN, and search for it
            check_json(_LENIENT.decode(text))
            raise
    except JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise WireError(f"no valid JSON: {error.msg.removesuffix(' at')} at {place}") from None
    except RecursionError:
        raise WireError(_TOO_DEEP) from None
    can_have_surrogates = not text.isascii() or "\\u" in text
    if can_have_surrogates and isinstance(value, dict):
        for name in value:
            check_text(name, name)
    return value


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else RepeatedKeys(pairs)


def _int(digits: str) -> int | float:
    if digits == "-0":
        return -0.0
    try:
        return int(digits)
    except ValueError:  # more digits than sys.get_int_max_str_digits(), which is at least 640
        return float(digits)


def _refuse_constant(name: str) -> Json:
    raise WireError(f"expected a JSON value, got {name}")


_STRICT = JSONDecoder(object_pairs_hook=_object, parse_int=_int, parse_constant=_refuse_constant)
_LENIENT = JSONDecoder(object_pairs_hook=_object, parse_int=lambda _: 0, parse_float=lambda _: 0)

# --- texts for errors: short, however large the value ---------------------------------------------------------------


def described(value: Any) -> str:
    """Return a short description of `value` in the terms of JSON, for an error message."""
    if value is None or isinstance(value, bool):
        return _LITERALS[value]
    if isinstance(value, str):
        return f"the string {shortened(str(value[:100]).__repr__())}"
    if isinstance(value, int):
        return f"the integer {int(value)}" if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"the number {float(value)}"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    cls = type(value)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return f"an instance of {module}{cls.__qualname__}"


def _shown(path: Sequence[str | int]) -> str:
    text = ""
    for number, step in enumerate(path):
        short = shortened(step) if isinstance(step, str) else step
        if number == 0 and isinstance(step, str) and step.isprintable():
            text = step
        else:
            text += f".{short}" if isinstance(step, str) and step.isidentifier() else f"[{short!r}]"
    return shortened(text, 200)


def shortened(text: str, limit: int = 60) -> str:
    """Return `text`, or its beginning and its end if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"
