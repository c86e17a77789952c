"""What does a long command show? The steps at hand: in a terminal one line that moves, in a log one every now and then.

Python's own library alone: `stack.setup` shows what it does before any package is there.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

REDRAW_SECONDS = 0.2
# In a log a step is named once it takes so long, and then again and again.
FIRST_LINE_SECONDS, LINE_SECONDS = 5.0, 15.0
CLEAR_LINE = "\r\033[K"


class Steps:
    """Lines with the seconds since the start. Steps may run side by side, in several threads.

    Args:
        out: where they go; standard output by default.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._moves = self._out.isatty()
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}  # name → how far it is
        self._drawn = False

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._print(text)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show a step while the block runs, and a line with its seconds once it has ended well.

        Yields what takes how far it is, such as "12 of 40"; the last one stays on its line.
        """
        began, ended = time.monotonic(), threading.Event()

        def note(detail: str) -> None:
            with self._lock:
                self._running[name] = detail

        note("")
        ticker = threading.Thread(target=self._show, args=(name, ended), daemon=True)
        ticker.start()
        try:
            yield note
        finally:
            ended.set()
            ticker.join()
            with self._lock:
                detail = self._running.pop(name)
                self._clear()
        took = time.monotonic() - began
        self.say(f"{self._clock()} {_joined(name, detail)} ({took:.1f} s)")

    def _show(self, name: str, ended: threading.Event) -> None:
        pause = REDRAW_SECONDS if self._moves else FIRST_LINE_SECONDS
        while not ended.wait(pause):
            with self._lock:
                if self._moves:
                    self._draw()
                else:
                    self._print(f"{self._clock()} … {_joined(name, self._running[name])}")
            pause = REDRAW_SECONDS if self._moves else LINE_SECONDS

    def _draw(self) -> None:
        line = f"{self._clock()} … {' | '.join(_joined(*step) for step in self._running.items())}"
        self._out.write(CLEAR_LINE + line[: shutil.get_terminal_size().columns - 1])
        self._out.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._out.write(CLEAR_LINE)
            self._drawn = False

    def _print(self, text: str) -> None:
        self._clear()
        self._out.write(text + "\n")
        self._out.flush()

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def _clock(self) -> str:
        return f"[{self.seconds():4.0f} s]"


def _joined(name: str, detail: str) -> str:
    return f"{name}: {detail}" if detail else name
