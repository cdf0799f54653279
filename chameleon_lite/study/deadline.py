"""A limit on an experiment's time that loses nothing: work stops between two pieces, each of them kept."""

import time

from ..errors import RunFailed


class Deadline:
    """Stops before the piece of work that would not end within `minutes`, judged by the longest; None = never."""

    def __init__(self, minutes: float | None) -> None:
        self.limit = None if minutes is None else 60 * minutes
        self.started = self.last = time.perf_counter()
        self.longest = 0.0

    def check(self, what: str) -> None:
        """Raise RunFailed if one more piece as long as the longest would pass the limit; else one begins."""
        self.last = time.perf_counter()
        if self.limit is not None and self.last - self.started + self.longest > self.limit:
            raise RunFailed(
                f"time is up before {what}; what is done is kept, run the same command again to go on"
            )

    def done(self) -> None:
        """A piece is through."""
        self.longest = max(self.longest, time.perf_counter() - self.last)
