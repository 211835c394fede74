"""When training saves and when it stops: by the clock, by a deadline, and by signals from outside."""

import signal
import threading
import time
from types import FrameType
from typing import Any

SAVE_EVERY = 300.0  # seconds between checkpoints: what is lost when the power fails
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what batch systems and containers send


class Watch:
    """Says during training whether it is time to save, and whether to stop.

    Between `with` and its end the first signal of each kind is noted, so that the step at hand is
    finished and saved. A second one does what it always does. Signals reach the main thread alone;
    in others nothing is noted.
    """

    def __init__(self, deadline: float | None = None) -> None:
        """Watch for `deadline`, a time of `time.monotonic()`, if there is one."""
        self._deadline = deadline
        self._saved = time.monotonic()
        self._before: dict[int, Any] = {}
        self.signal: int | None = None

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)  # None: not Python's

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number] or signal.SIG_DFL)

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def due(self) -> bool:
        """Whether to save: the last time was a while ago, or training is to stop at once."""
        return self.signal is not None or time.monotonic() - self._saved >= SAVE_EVERY

    def saved(self) -> None:
        """Note that all has been saved now."""
        self._saved = time.monotonic()
