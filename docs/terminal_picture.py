"""How does a search look? Run the demo in a pseudo-terminal and draw what was seen as an SVG.

    python docs/terminal_picture.py --output docs/terminal.svg
    python docs/terminal_picture.py --timeout 10m      # on a slow or busy machine

The run is real and takes as long as the demo: some four minutes. The picture has two parts: the
screen at one moment of the search, and what stands there when it has ended. `--recording` keeps
everything that the terminal received, so that the picture can be drawn again without a search.
Other options go to the search, and stand in the picture.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COMMAND = "automl-ft search demo"
COLUMNS, ROWS = 100, 32
_REDRAW = re.compile(r"(\r(?:\x1b\[1A|\x1b\[2K)+)")
"""How rich's live view takes its last frame away: clear the line, go up, clear, ..."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CURSOR = re.compile(r"\x1b\[\?25[lh]")
_ENDED = re.compile(r"^\W trial (\d+) \w+ after ", re.M)
_RUNNING = re.compile(r"^trial (\d+) ", re.M)
_SPARKLINE = re.compile("[\u2581-\u2588]+")
_END = "Done: "
_ENOUGH_TRIALS = 3
_FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}\s*", re.S)
_FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"


def main() -> None:
    """Read the options, record a run unless one is given, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/terminal.svg"))
    parser.add_argument("--recording", type=Path, help="Reuse this file, or write it if missing.")
    options, more = parser.parse_known_args()
    command = " ".join([COMMAND, *more])
    if options.recording is not None and options.recording.exists():
        received = options.recording.read_bytes()
    else:
        received = record(command)
    if options.recording is not None:
        options.recording.write_bytes(received)
    frames = list(screens(received.decode("utf-8")))
    picture = draw(command, moment(frames), ending(frames[-1]))
    options.output.write_text(picture, encoding="utf-8")


def record(command: str) -> bytes:
    """Run the demo in a terminal and an empty folder.

    Args:
        command: What a user would type.

    Returns:
        Everything that the terminal received.

    Raises:
        SystemExit: The search failed.
    """
    terminal, child_side = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    words = [sys.executable, "-P", "-m", "automl_ft.cli.main", *command.split()[1:]]
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        streams = {"stdin": child_side, "stdout": child_side, "stderr": child_side}
        process = subprocess.Popen(words, cwd=folder, env=environment, **streams)
        os.close(child_side)
        received = b"".join(_read(terminal))
        if process.wait() != 0:
            raise SystemExit(f"`{command}` ended with exit code {process.returncode}.")
    return received


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux says so when nobody is left on the other side
            return
        if not chunk:
            return
        yield chunk


def screens(received: str) -> Iterator[list[str]]:
    """Follow the cursor of rich's live view.

    Args:
        received: What the terminal received.

    Yields:
        All lines so far, with their colours, whenever they are complete; the final ones last.

    Raises:
        SystemExit: There is a control sequence that this does not know.
    """
    lines = [""]
    plain = _CURSOR.sub("", received).replace("\r\n", "\n")
    for text in _REDRAW.split(plain):
        if not _REDRAW.fullmatch(text):
            if "\x1b" in _plain(text) or "\r" in text:
                raise SystemExit(f"Unknown control sequence in {text!r}.")
            first, *others = text.split("\n")
            lines = [*lines[:-1], lines[-1] + first, *others]
        else:
            yield lines
            kept = len(lines) - 1 - text.count("\x1b[1A")
            lines = [*lines[:kept], ""]
    yield lines


def moment(frames: list[list[str]]) -> list[str]:
    """Choose a moment that shows much: some trials ended, and a long curve of the current one.

    Args:
        frames: All lines at every moment.

    Returns:
        The lines on the screen.

    Raises:
        SystemExit: There is no such moment, because the search was too short.
    """

    def curve_length(frame: list[str]) -> int:
        text = _plain("\n".join(frame))
        ended, curves = _ENDED.findall(text), _SPARKLINE.findall(text)
        is_between = not set(_RUNNING.findall(text)).isdisjoint(ended)
        return 0 if is_between or not curves or len(ended) < _ENOUGH_TRIALS else len(curves[-1])

    best = max(reversed(frames), key=curve_length)
    if not curve_length(best):
        raise SystemExit(f"The search ended before it had {_ENOUGH_TRIALS} trials and a curve.")
    screen = best[-ROWS:]
    # The settings above the data are left out.
    start = [number for number, line in enumerate(screen) if _plain(line).startswith("data ")]
    return screen[start[0] if start else 0 :]


def _plain(text: str) -> str:
    return _COLOUR.sub("", text)


def ending(lines: list[str]) -> list[str]:
    """Return what is printed when the search has ended.

    Args:
        lines: All lines.

    Returns:
        Those from the reason on: ranking, verdict, what to do next.
    """
    start = next(number for number, line in enumerate(lines) if _plain(line).startswith(_END))
    return lines[start:]


def draw(command: str, during: list[str], after: list[str]) -> str:
    """Draw both parts one below the other.

    Args:
        command: What was typed.
        during: The screen at one moment of the search.
        after: What stands there at its end.

    Returns:
        The SVG.
    """
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(Text.assemble(("$ ", "green"), (command, "bold")))
    console.print(Text("...\n", style="dim"))
    _print(console, during)
    console.print(Text("\n... and at the end\n", style="dim"))
    _print(console, after)
    style = _FONT_FACE.sub("", CONSOLE_SVG_FORMAT)
    # Not rich's web font: the picture loads nothing.
    style = style.replace("Fira Code, monospace", _FONTS)
    return console.export_svg(title=command, code_format=style, unique_id="automl-ft")


def _print(console: Console, lines: list[str]) -> None:
    texts = [Text.from_ansi(line) for line in lines]
    while texts and not texts[-1].plain.strip():
        texts.pop()
    for text in texts:
        console.print(text, overflow="fold")


if __name__ == "__main__":
    main()
