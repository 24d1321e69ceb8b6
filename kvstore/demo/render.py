"""How the demonstration looks: sections, tables, bars; colour where the terminal has it, plain text where not.

Lives here: the ``Stage``, which writes to the terminal and, when asked, to a recording from which an SVG is made. What
moves (progress) is drawn on a terminal only and leaves one line behind; elsewhere progress is a few plain lines.
"""

from __future__ import annotations

import io
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

RECORDING_COLUMNS = 120
"""Width of the picture: the longest line of ``nodetool repair``, with its session id, fits."""
PROSE_COLUMNS = 100
"""Sentences are not wider, however wide the terminal is."""
CONTINUED_INDENT = " " * 6
"""Before what did not fit into the line above: further in than everything that begins a line."""
BAR_COLUMNS = 24
"""With two gauges of half of it, or with a rate beside it, a line fits 80 columns."""
PLAIN_PROGRESS_PARTS = 4
"""Where nothing can move, a line is printed after each quarter of the work,"""
PLAIN_PROGRESS_SECONDS = 1.0
"""but not sooner than this after the one before."""

# No link leads outside: a picture must look the same without a network, and tell nobody who looks at it.
SVG_TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; \
font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Stage:
    """Everything that the demonstration shows goes through here."""

    def __init__(
        self,
        *,
        console: Console | None = None,
        record: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._terminal = console or Console(highlight=False, emoji=False)
        self._recording: Console | None = None
        self._section_number = 0
        self._blank = False
        if record:
            self._recording = Console(
                file=io.StringIO(),
                record=True,
                width=RECORDING_COLUMNS,
                force_terminal=True,
                color_system="truecolor",
                highlight=False,
                emoji=False,
                legacy_windows=False,
                _environ={},
            )

    @property
    def is_terminal(self) -> bool:
        """Whether something may move."""
        return self._terminal.is_terminal and not self._terminal.is_dumb_terminal

    def _print(self, line: Text) -> None:
        """Print a line to every place. Of blank lines that follow each other one is kept.

        On a terminal that is too narrow the line goes on below at a word, further in; elsewhere it is never broken, as
        a program may read it.
        """
        if not line.plain and self._blank:
            return
        self._blank = not line.plain
        for console in (self._terminal, self._recording):
            if console is None:
                continue
            for piece in _folded(line, console.width) if console.is_terminal else (line,):
                console.print(piece, soft_wrap=True)

    def title(self, text: str) -> None:
        """The first line."""
        self._print(Text(text, style="bold"))

    def section(self, text: str) -> None:
        """Begin a numbered part."""
        self._section_number += 1
        self._print(Text())
        self._print(Text.assemble((f" {self._section_number} ", "bold reverse"), " ", (text, "bold cyan")))

    def say(self, text: str, *, style: str = "") -> None:
        """A sentence about what happens; breaks at words."""
        self._blank = False
        for console in (self._terminal, self._recording):
            if console is not None:
                for line in textwrap.wrap(text, min(console.width, PROSE_COLUMNS) - 2):
                    console.print(Text(f"  {line}", style=style), soft_wrap=True)

    def command(self, arguments: Sequence[str]) -> None:
        """A command line that is run."""
        self._print(Text())
        self._print(Text.assemble(("  $ ", "green"), (" ".join(arguments), "bold")))

    def output(self, line: str) -> None:
        """A line that a command printed."""
        text = Text(f"  {line}" if line else "")
        text.highlight_regex(r"^  UN\b", "bold green")
        text.highlight_regex(r"^  [D?]\w\b", "bold red")
        self._print(text)

    def table(self, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> None:
        """A table; a column is its title and ``left`` or ``right``."""
        self._print(Text())
        lines = [[title for title, _ in columns], *rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        for number, line in enumerate(lines):
            cells = [
                (str.rjust if side == "right" else str.ljust)(cell, width)
                for cell, width, (_, side) in zip(line, widths, columns, strict=True)
            ]
            self._print(Text(f"  {'   '.join(cells)}".rstrip(), style="bold" if number == 0 else ""))
        self._print(Text())

    def gauges(self, label: str, values: Sequence[tuple[str, float]], *, full: float) -> None:
        """One line with a bar for each value, ``full`` being the whole bar; red from there on."""
        text = Text(f"  {label}")
        for name, value in values:
            style = "red" if value >= full else "yellow" if value >= full / 2 else "green"
            text.append(f"   {name} {value:6.2f} ")
            text.append(self._bar(value / full, BAR_COLUMNS // 2), style=style)
        self._print(text)

    def failure(self, lines: Sequence[str]) -> None:
        """What went wrong."""
        self._print(Text())
        for index, line in enumerate(lines):
            self._print(Text(f"demo failed: {line}" if index == 0 else f"  {line}", style="bold red"))

    def conclusion(self, text: str) -> None:
        """The last line; begins at the left edge so that scripts can find it."""
        self._print(Text())
        self._print(Text(text, style="bold green"))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show work under way; the function given is called with how much is done. Ends with a line with the rate."""
        begun = self._clock()
        done = 0
        with self._moving(label, total, begun) as show:

            def update(amount: int) -> None:
                nonlocal done
                done = amount
                show(amount)

            yield update
        elapsed_seconds = max(self._clock() - begun, 1e-9)
        text = Text(f"  {label} ")
        text.append(self._bar(done / max(total, 1), BAR_COLUMNS), style="green")
        text.append(f" {done:,} rows in {elapsed_seconds:.1f} s, {done / elapsed_seconds:,.0f} rows/s")
        self._print(text)

    @contextmanager
    def _moving(self, label: str, total: int, begun: float) -> Iterator[Callable[[int], None]]:
        if not self.is_terminal:
            yield _PlainProgress(self._terminal, label, total, self._clock)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(BAR_COLUMNS),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, console=self._terminal, transient=True) as bar:
            task = bar.add_task(label, total=total, rate="")

            def show(amount: int) -> None:
                rate = amount / max(self._clock() - begun, 1e-9)
                bar.update(task, completed=amount, rate=f"{rate:,.0f} rows/s")

            yield show

    def _bar(self, share: float, columns: int) -> str:
        full, empty = ("━", "─") if self._terminal.encoding.startswith("utf") else ("#", ".")
        filled = min(columns, max(0, round(share * columns)))
        return full * filled + empty * (columns - filled)

    def save_svg(self, path: Path, *, title: str) -> None:
        """Write what was shown as a picture.

        Raises:
            OSError: it cannot be written.
        """
        if self._recording is None:
            raise RuntimeError("nothing was recorded: make the stage with record=True")
        svg = self._recording.export_svg(title=title, code_format=SVG_TEMPLATE, unique_id="demo")
        path.write_text(svg, encoding="utf-8")


def _folded(line: Text, columns: int) -> list[Text]:
    """The line in pieces that fit; a word that does not fit into a line of its own stays whole."""
    pieces = []
    indent = ""
    while len(indent) + len(line) > columns:
        room = columns - len(indent)
        begin = len(line.plain) - len(line.plain.lstrip())
        space = line.plain.rfind(" ", begin, room + 1)
        if space < 0:
            space = line.plain.find(" ", room)
        if space < 0:
            break
        pieces.append(Text(indent) + line[:space])
        line = line[space:]
        line = line[len(line.plain) - len(line.plain.lstrip()) :]
        indent = CONTINUED_INDENT
    return [*pieces, Text(indent) + line]


class _PlainProgress:
    """Prints a line now and then."""

    def __init__(self, console: Console, label: str, total: int, clock: Callable[[], float]) -> None:
        self._console = console
        self._label = label
        self._total = max(total, 1)
        self._clock = clock
        self._begun = self._printed = clock()
        self._parts = 0

    def __call__(self, amount: int) -> None:
        parts = amount * PLAIN_PROGRESS_PARTS // self._total
        now = self._clock()
        if not self._parts < parts < PLAIN_PROGRESS_PARTS or now - self._printed < PLAIN_PROGRESS_SECONDS:
            return
        self._parts, self._printed = parts, now
        rate = amount / max(now - self._begun, 1e-9)
        self._console.print(
            Text(f"  {self._label} {amount:,} of {self._total:,} rows, {rate:,.0f} rows/s"), soft_wrap=True
        )
