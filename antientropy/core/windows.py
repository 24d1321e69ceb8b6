"""Times of the day in which repairs may begin, such as ``22:00-06:00``. Seconds of the local day, 0 to 86,400."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DAY_SECONDS: Final = 86_400
_FORM: Final = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """From ``begin`` (included) to ``end`` (excluded), seconds of the day; ``end`` before ``begin``: over midnight."""

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """From ``HH:MM-HH:MM``; ``24:00`` is the end of the day.

        Raises:
            ValueError: it has another form, is no time of day, or is empty.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"window {text!r} is not of the form HH:MM-HH:MM, such as 22:00-06:00")
        begin_hours, begin_minutes, end_hours, end_minutes = map(int, found.groups())
        begin, end = 3600 * begin_hours + 60 * begin_minutes, 3600 * end_hours + 60 * end_minutes
        if begin_minutes > 59 or end_minutes > 59 or begin >= DAY_SECONDS or end > DAY_SECONDS:
            raise ValueError(f"window {text!r} has a time that is none: hours are 0 to 23, minutes 0 to 59")
        if begin == end:
            raise ValueError(f"window {text!r} is empty; for all day leave windows out, or give 00:00-24:00")
        return cls(begin, end)

    @property
    def length_seconds(self) -> int:
        """How long it is open each day."""
        return (self.end - self.begin) % DAY_SECONDS or DAY_SECONDS

    def contains(self, second_of_day: float) -> bool:
        """Whether it is open then."""
        return (second_of_day - self.begin) % DAY_SECONDS < self.length_seconds

    def __str__(self) -> str:
        return f"{_clock(self.begin)}-{_clock(self.end)}"


def in_windows(windows: Sequence[Window], second_of_day: float) -> bool:
    """Whether one of them is open; always if there are none."""
    return not windows or any(window.contains(second_of_day) for window in windows)


def opens_in_seconds(windows: Sequence[Window], second_of_day: float) -> float:
    """How long until one of them is open; 0 if one is."""
    if in_windows(windows, second_of_day):
        return 0.0
    return min((window.begin - second_of_day) % DAY_SECONDS for window in windows)


def open_for_seconds(windows: Sequence[Window], second_of_day: float) -> float:
    """How long it stays open from here without a gap; 0 if none is open, a whole day if there are none or no gap."""
    if not windows:
        return float(DAY_SECONDS)
    begun, left = int(second_of_day), 0  # windows begin and end with whole seconds
    while left < DAY_SECONDS:
        at = (begun + left) % DAY_SECONDS
        more = max((w.length_seconds - (at - w.begin) % DAY_SECONDS for w in windows if w.contains(at)), default=0)
        if more == 0:
            break
        left += more
    return max(0.0, min(left, DAY_SECONDS) - (second_of_day - begun)) if left else 0.0


def _clock(second: int) -> str:
    return f"{second // 3600:02}:{second % 3600 // 60:02}"
