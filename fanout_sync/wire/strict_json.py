"""JSON as serde_json reads and writes it: strict, compact, and every refusal a `WireError` that names the place."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from json import JSONDecodeError, JSONDecoder
from json.encoder import encode_basestring
from typing import Any, TypeVar

from ..errors import WireError
from ..records.steps import Json

MAX_DEPTH = 127
"""How deep objects and arrays nest, the record's own object counted: serde_json refuses to enter the 128th level."""

T = TypeVar("T")
Place = list["str | int"]
"""Where a value stands: keys and indices from the record down; it becomes text only in an error."""

quoted: Callable[[str], str] = encode_basestring
"""Returns a string as JSON has it; what is no UTF-8 stays as it is."""

_QUICK_INT_BITS = 1024
_DROP = deque[str](maxlen=0).append  # where the text goes when only its being possible matters

# --- writing ------------------------------------------------------------------------------------------------------


def write_json(value: Json) -> str:
    """Return `value` as compact JSON, as serde_json prints it: UTF-8 not escaped, floats as ryu writes them.

    Raises:
        WireError: Somewhere in it is what JSON cannot carry; its place is named.
    """
    pieces: list[str] = []
    _write(value, [], pieces.append)
    return "".join(pieces)


def check_json(value: Json, path: str) -> None:
    """Refuse what the wire cannot carry.

    Args:
        value: What is to stand in a field of a record.
        path: The name of that field.

    Raises:
        WireError: A key is no `str`; a value is no `dict`, `list`, `str`, `int`, finite `float`, `bool` or `None`;
            a string holds a lone surrogate; or it nests deeper than `MAX_DEPTH`, as a cycle does.
    """
    if not _is_plain(value, MAX_DEPTH - 1):
        _write(value, [path], _DROP)


def check_record(value: dict[str, Json]) -> None:
    """Refuse a whole record that the wire cannot carry, as `check_json` does; the field is named.

    Raises:
        WireError: Some field holds what JSON cannot carry.
    """
    _write(value, [], _DROP)


def check_text(value: str, path: str) -> None:
    """Refuse a string that UTF-8 cannot carry.

    Raises:
        WireError: It holds a lone surrogate, as `os.fsdecode` and `"surrogateescape"` make them.
    """
    _check_text(value, [path])


def _check_text(value: str, path: Place) -> None:
    if value.isascii():  # by far the quickest answer, and the most frequent one
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(value[error.start]):04X}"
        raise WireError(f"a lone surrogate ({surrogate}) at character {error.start} is no text", _shown(path)) from None


def _is_plain(value: Json, room: int) -> bool:
    """Whether it is JSON of the commonest kinds throughout: a quick look, of which `_write` is the thorough one."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    if kind is dict:
        return room > 0 and all(
            type(key) is str and key.isascii() and _is_plain(item, room - 1) for key, item in value.items()
        )
    if kind is list:
        return room > 0 and all(_is_plain(item, room - 1) for item in value)
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(value.bit_length() <= _QUICK_INT_BITS)
    return kind is bool or value is None


def _write(value: Json, path: Place, out: Callable[[str], object]) -> None:
    # One walk validates and writes. `path` is one list that grows and shrinks: when something is refused it is
    # left as it stands, and tells where.
    if isinstance(value, str):
        _check_text(value, path)
        out(encode_basestring(value))
    elif value is None:
        out("null")
    elif value is True:
        out("true")
    elif value is False:
        out("false")
    elif isinstance(value, int):
        out(_int_text(value, path))
    elif isinstance(value, float):
        out(_float_text(value, path))
    elif isinstance(value, dict):
        _write_object(value, path, out)
    elif isinstance(value, list):
        _write_array(value, path, out)
    else:
        raise WireError(f"expected a JSON value, got {described(value)}", _shown(path))


def _write_object(value: dict[str, Json], path: Place, out: Callable[[str], object]) -> None:
    _enter(path)
    lead = "{"
    for key, item in value.items():
        if not isinstance(key, str):
            raise WireError(f"expected a string as key, got {described(key)}", _shown(path))
        path.append(key)
        _check_text(key, path)
        out(lead)
        out(encode_basestring(key))
        out(":")
        _write(item, path, out)
        path.pop()
        lead = ","
    out("}" if value else "{}")


def _write_array(value: list[Json], path: Place, out: Callable[[str], object]) -> None:
    _enter(path)
    lead = "["
    for index, item in enumerate(value):
        path.append(index)
        out(lead)
        _write(item, path, out)
        path.pop()
        lead = ","
    out("]" if value else "[]")


def _enter(path: Place) -> None:
    if len(path) >= MAX_DEPTH:
        raise _too_deep(path)


def _int_text(value: int, path: Place) -> str:
    # int.__repr__ and float.__repr__ below, because an IntEnum or a numpy.float64 says something else in its own.
    try:
        return int.__repr__(value)
    except ValueError:  # more digits than sys.get_int_max_str_digits(): nobody's int() would read them back
        raise WireError(f"expected a shorter integer, got {described(value)}", _shown(path)) from None


def _float_text(value: float, path: Place) -> str:
    if not math.isfinite(value):
        raise WireError(f"expected a finite number, got {value}", _shown(path))
    # The digits are Python's, the notation is that of ryu, which the reference prints with. Newer releases of
    # serde_json print with zmij instead, and write 1e+16; all of them read both.
    mantissa, _, exponent = float.__repr__(value).partition("e")
    if not exponent:
        return mantissa
    power = int(exponent)
    if power == -5:  # the one place where Python turns to an exponent sooner than ryu does: 1.2e-05 is 0.000012
        sign = "-" if value < 0 else ""
        return f"{sign}0.0000{mantissa.lstrip('-').replace('.', '')}"
    return f"{mantissa}e{power}"


# --- reading ------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Json:
    """Read one JSON value, strictly.

    Args:
        text: The whole text; `bytes` are UTF-8 without a byte order mark.

    Returns:
        The value; an `int` of any length that `int()` accepts, except that `-0` is `-0.0` as in serde_json. What is
        checked in a record's known fields only, because serde_json ignores it in others: lone surrogates in escapes,
        and nesting beyond `MAX_DEPTH` that the parser could still read.

    Raises:
        WireError: It is no JSON, has a duplicate key, or a number that no `int` or finite `float` holds.
    """
    if isinstance(text, bytes):
        text = _decoded(text)
    elif not isinstance(text, str):
        raise TypeError(f"JSON is read from str or bytes, got {type(text).__name__}")
    if text.startswith("\ufeff"):
        raise WireError("starts with a byte order mark (U+FEFF); expected UTF-8 without one")
    try:
        return _STRICT.decode(text)
    except (_Refused, JSONDecodeError, RecursionError):
        raise _explained(text) from None


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        reason = f"expected UTF-8, got the byte 0x{text[error.start]:02x} at byte {error.start} ({error.reason})"
        raise WireError(reason) from None


class _Refused(Exception):
    """What a decoder hook refuses; the hooks are not told where they are."""

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason, key)
        self.reason = reason
        self.key = key


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused("duplicate key", key)
            seen.add(key)
    return value


def _int(digits: str) -> int | float:
    if digits == "-0":
        return -0.0
    try:
        return int(digits)
    except ValueError:
        raise _Refused(f"expected a shorter integer, got one of {len(digits)} digits") from None


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Refused(f"expected a finite number, got {shortened(digits)}")
    return value


def _constant(name: str) -> Json:
    raise _Refused(f"expected a JSON value, got {name}")


def _kept(hook: Callable[[T], Json]) -> Callable[[T], Json]:
    def keeping(argument: T) -> Json:
        try:
            return hook(argument)
        except _Refused as refused:
            return refused

    return keeping


_STRICT = JSONDecoder(object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant)
# A second reading, only after the first one refused: what is refused is left in its place, to be found there.
_LOCATING = JSONDecoder(
    object_pairs_hook=_kept(_object),
    parse_int=_kept(_int),
    parse_float=_kept(_float),
    parse_constant=_kept(_constant),
)


def _explained(text: str) -> WireError:
    try:
        value = _LOCATING.decode(text)
    except JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        problem = error.msg.removesuffix(" at")
        return WireError(f"no valid JSON: {problem} at {place}", _shown(_path_at(text, error.pos)))
    except RecursionError:
        return _too_deep(_path_at(text, len(text)))
    return _found(value)


def _found(value: Json) -> WireError:
    # No recursion: the parser can go deeper than the Python stack may have room for.
    pending: list[tuple[Json, Place]] = [(value, [])]
    while True:  # the first reading was refused, so there is a `_Refused` to be found
        value, path = pending.pop()
        if len(path) > MAX_DEPTH:
            return _too_deep(path)
        if isinstance(value, _Refused):
            return WireError(value.reason, _shown(path if value.key is None else [*path, value.key]))
        if isinstance(value, dict):
            pending += [(item, [*path, key]) for key, item in reversed(value.items())]
        elif isinstance(value, list):
            pending += [(item, [*path, index]) for index, item in reversed(list(enumerate(value)))]


_TOKEN = re.compile(r'(?P<string>"[^"\\]*(?:\\.[^"\\]*)*")|(?P<mark>["\[\]{},:])|[^\s"\[\]{},:]+', re.DOTALL)


def _path_at(text: str, end: int) -> Place:
    # Where the parser gave up: "" is an object between two of its fields.
    path: Place = []
    key = ""
    for token in _TOKEN.finditer(text, 0, end):
        mark = token["mark"]
        if mark == '"' or len(path) > MAX_DEPTH:  # a string that does not end; deep enough
            break
        if mark == "{" or mark == "[":
            path.append("" if mark == "{" else 0)
        elif path:
            key = _passed(path, token, key)
    return [step for step in path if step != ""]


def _passed(path: Place, token: re.Match[str], key: str) -> str:
    # Moves the end of `path` past `token`, and returns the key that was read last.
    mark, last = token["mark"], path[-1]
    if mark == ":":
        path[-1] = key
    elif mark == ",":
        path[-1] = last + 1 if isinstance(last, int) else ""
    elif token["string"] and last == "":
        return token["string"][1:-1]
    else:  # a value ends here
        if mark:
            path.pop()
        if path and isinstance(path[-1], str):
            path[-1] = ""
    return key


# --- what an error says: short, whatever came -----------------------------------------------------------------------


def described(value: Any) -> str:
    """Return what `value` is, in a few words of JSON's own, for an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {shortened(str(value[:100]).__repr__())}"
    if isinstance(value, int):
        return f"the integer {int(value)}" if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"the number {float(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    cls = type(value)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return f"an instance of {module}{cls.__qualname__}"


def _too_deep(path: Place) -> WireError:
    return WireError(f"nested deeper than {MAX_DEPTH} levels", _shown(path[:1]))


def _shown(path: Place) -> str:
    if not path:
        return ""
    first, *others = path
    head = first if isinstance(first, str) and first.isprintable() else _shown_step(first)
    return shortened(head + "".join(map(_shown_step, others)), 200)


def _shown_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{shortened(step)}" if step.isidentifier() else f"[{shortened(step)!r}]"


def shortened(text: str, limit: int = 60) -> str:
    """Return `text`, or its beginning and its end if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"
