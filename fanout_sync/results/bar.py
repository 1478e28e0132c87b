"""A progress bar, drawn by tqdm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from types import new_class
from typing import TYPE_CHECKING, Any

from .. import forks

if TYPE_CHECKING:
    from .progress import Progress, RunView

_METHODS = ("update", "set_postfix_str", "close")
"""What is used of a class; one that has them is taken for a tqdm class."""

_drawing = forks.ForkDelay()
"""Entered while a lock of tqdm may be held, so that no child is forked that could never draw a bar of its own."""


class Bar:
    """Draws the progress of a call as one bar: how many are done, the rate, the time left, and counts.

    Args:
        bar_class: A tqdm class.
        options: For its constructor, beside what the bar has anyway.
        stays: Whether the bar stays on the screen when the call has ended.
    """

    interval_s = 0.1
    shows_steps = False

    def __init__(self, bar_class: type, options: Mapping[str, Any], *, stays: bool) -> None:
        self._class = _drawn_by_us(bar_class)
        self._options = options
        self._stays = stays
        self._view: RunView | None = None
        self._bar: Any = None
        self._done = 0

    def begin(self, view: RunView) -> None:
        self._view = view
        own = {"unit": view.unit, "leave": self._stays, "dynamic_ncols": "ncols" not in self._options}
        # Each update is drawn. The rate is that of the whole time, as the estimate in `Progress` has it.
        fixed = {"total": view.progress().total, "mininterval": 0, "miniters": 0, "smoothing": 0}
        with _drawing:
            self._bar = self._class(**{**own, **self._options, **fixed})
        forks.disown_in_child(self)

    def update(self) -> None:
        try:
            self._draw()
        except (Exception, SystemExit):
            with suppress(Exception, SystemExit):  # the error that comes first is the one to show
                self._close()
            raise

    def end(self) -> None:
        try:
            self._draw()
        finally:
            self._close()

    def disown(self) -> None:
        if self._bar is not None:
            self._bar.disable = True  # as in `_close`
            self._bar = None

    def _draw(self) -> None:
        if self._bar is None or self._view is None:
            return
        progress = self._view.progress()
        done = progress.done
        if self._view.unit == "step":
            done -= progress.cancelled  # a run that was interrupted has not come to its end
            self._bar.initial = progress.reused  # these took no time: the rate is that of the others
        self._bar.total = progress.total
        self._bar.set_postfix_str(counts_of(progress), refresh=False)
        with _drawing:
            self._bar.update(done - getattr(self._bar, "n", self._done))
        self._done = done

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is None:
            return
        # One that stays is drawn for the last time at the top, and moves the others down by a line.
        with _drawing, nullcontext() if _is_alone(bar) else around_bars(bar.fp):
            try:
                bar.close()
            finally:
                bar.disable = True  # or it would be drawn once more when it is collected


def counts_of(progress: Progress) -> str:
    """Return the counts that are not zero, as a bar shows them, such as `"failed=2, retried=5, cost=$0.42"`."""
    names = ("failed", "cancelled", "retried", "reused", "waiting")
    shown = [f"{name}={count}" for name in names if (count := getattr(progress, name))]
    if tokens := progress.usage.tokens:
        shown.append(f"tokens={_short(tokens)}")
    if cost_usd := progress.usage.cost_usd:
        shown.append(f"cost=${cost_usd:.2f}" if cost_usd >= 0.01 else f"cost=${cost_usd:.1g}")
    return ", ".join(shown)


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.0f}T"


# Where it is drawn ----------------------------------------------------------------------------------------------------


def is_bar_class(value: Any) -> bool:
    """Return whether a value is a class of progress bars, with the methods that those of tqdm have."""
    return isinstance(value, type) and all(callable(getattr(value, name, None)) for name in _METHODS)


def visible_bar_class() -> type | None:
    """Return the tqdm class whose bars somebody sees: in a notebook, or in a terminal; `None` if there is neither."""
    if _is_in_notebook():
        from tqdm import notebook  # imported lazily: slow, as all of tqdm

        if notebook.IProgress is None:  # no ipywidgets, of which tqdm.auto would warn
            return _text_bar_class()
    elif not _is_terminal(sys.stderr):
        return None
    from tqdm.auto import tqdm

    return tqdm  # type: ignore[no-any-return]  # tqdm has no types


@contextmanager
def around_bars(stream: Any) -> Iterator[None]:
    """Let text be written to a stream in the `with` block: bars of tqdm are out of the way, and drawn after it.

    These are all bars of this process, also those that are not of this package.
    """
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", True):  # which saves the lock
        yield
        return
    with _drawing, tqdm.external_write_mode(file=stream):
        yield


def _is_alone(bar: Any) -> bool:
    if not hasattr(bar, "fp") or bar.disable:
        return True
    return not bar.pos and all(each is bar for each in list(bar._instances))


def _is_in_notebook() -> bool:
    """Return whether this is the kernel of a notebook, whose standard error is shown though it is no terminal."""
    get_shell: Callable[[], Any] | None = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    # Google's Colab and others have classes of their own, derived from this one.
    return any(each.__name__ == "ZMQInteractiveShell" for each in type(shell).__mro__)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # `None` where there is no console, or a stand-in, or closed
        return False


def _text_bar_class() -> type:
    from tqdm.std import tqdm

    return tqdm  # type: ignore[no-any-return]  # as above


def _drawn_by_us(bar_class: type) -> type:
    """Return a class of the same bars that starts no thread and, if drawing fails, leaves nothing behind."""
    std: Any = sys.modules.get("tqdm.std")
    if std is None or not issubclass(bar_class, std.tqdm):
        return bar_class
    std.tqdm.get_lock()  # made now, so that all classes have the same

    def begin(self: Any, *args: Any, **options: Any) -> None:
        try:
            bar_class.__init__(self, *args, **options)  # type: ignore[misc]  # of whatever class it is
        except BaseException:
            self.disable = True
            raise

    def collect(self: Any) -> None:
        if not getattr(self, "disable", True):
            with suppress(Exception):  # which nobody could catch
                self.close()

    def refresh(self: Any, nolock: bool = False, lock_args: object = None) -> Any:
        with nullcontext() if nolock else self.get_lock():  # tqdm itself does not release it after an error
            return bar_class.refresh(self, nolock=True)  # type: ignore[attr-defined]  # tqdm's

    names = {"__init__": begin, "__del__": collect, "refresh": refresh, "monitor_interval": 0}
    names["__module__"] = bar_class.__module__
    return new_class(bar_class.__name__, (bar_class,), exec_body=lambda body: body.update(names))
