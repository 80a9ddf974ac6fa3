"""The moving picture of the README: ``python docs/picture.py`` draws demo.svg from the recording demo.cast.

``python docs/picture.py --record`` first records `asyncrevoke demo` anew, on a terminal of its own. The recording is an
asciicast, version 2, so `asciinema play docs/demo.cast` plays it, too. The whole demo takes a tenth of a second. So the
picture shows one line after the other, and each line tells its own time.
"""

import html
import json
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
CAST, SVG = HERE / "demo.cast", HERE / "demo.svg"

WIDTH, HEIGHT = 7.2, 18  # of a character and of a line
MARGIN = 16
PACE, PAUSE, END = 0.45, 1.2, 5.0  # seconds after a line, before a line of the demo's own voice, and after the last
LIGHT = {"1": "#1f2328", "32": "#116329", "33": "#7d4e00", "35": "#8250df", "36": "#0a5c78"}
DARK = {"1": "#f0f6fc", "32": "#7ee787", "33": "#f2cc60", "35": "#d2a8ff", "36": "#76e3ea"}
"""The colours of the terminal, by their number in an escape sequence. The first one is the demo's own voice."""

LINE = re.compile(r"\x1b\[(\d+)m(.*?)\x1b\[0m")


def record() -> str:
    """Run the demo on a pseudo terminal, and return an asciicast of it."""
    command = "asyncrevoke demo"
    ours, its = os.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    events = [json.dumps({"version": 2, "width": 120, "height": 32, "command": command})]
    began = time.monotonic()
    with subprocess.Popen(  # noqa: S603  # our own program
        [sys.executable, "-m", *command.split()], stdin=its, stdout=its, env=env
    ) as demo:
        os.close(its)
        while data := _read(ours):
            events.append(json.dumps([round(time.monotonic() - began, 3), "o", data]))
    os.close(ours)
    if demo.returncode:
        raise SystemExit(demo.returncode)
    return "\n".join([*events, ""])


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode()
    except OSError:  # EIO: the program has ended, and all was read
        return ""


def lines(cast: str) -> list[tuple[str, str]]:
    """What a recording shows: the colour and the text of each line."""
    _, *events = map(json.loads, cast.splitlines())
    return LINE.findall("".join(data for _, kind, data in events if kind == "o"))


def picture(cast: str) -> str:
    """Draw a recording as an SVG, whose lines appear one by one, for ever."""
    shown = lines(cast)
    height = 2 * MARGIN + HEIGHT * len(shown)
    width = 2 * MARGIN + WIDTH * max(len(text) for _, text in shown)
    voice = next(iter(LIGHT))
    starts = [0.0]
    for colour, _ in shown[1:]:
        starts.append(starts[-1] + (PAUSE if colour == voice else PACE))
    whole = starts[-1] + END
    frames = "".join(
        f"{100 * start / whole:.2f}%{{transform:translateY({HEIGHT * line}px)}}" for line, start in enumerate(starts, 1)
    )
    texts = [
        f'<text class="c{colour}" x="{MARGIN}" y="{HEIGHT * (line + 0.75):g}" '
        f'textLength="{WIDTH * len(text):.1f}" lengthAdjust="spacingAndGlyphs">{html.escape(text, quote=False)}</text>'
        for line, (colour, text) in enumerate(shown)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" role="img">',
            "<title>asyncrevoke demo: a shell is taken away from one of three clients, then from all</title>",
            "<style>",
            _colours("#f6f8fa", LIGHT),
            f"@media (prefers-color-scheme:dark){{{_colours('#0d1117', DARK)}}}",
            "text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}",
            ".c1{font-weight:bold}",
            f"@keyframes play{{{frames}}}",
            f".cover{{animation:play {whole:.2f}s step-end infinite}}",
            "@media (prefers-reduced-motion:reduce){.cover{display:none}}",
            "</style>",
            '<rect class="ground" width="100%" height="100%" rx="8"/>',
            f'<svg y="{MARGIN}" height="{HEIGHT * len(shown)}">',
            *texts,
            '<rect class="ground cover" width="100%" height="100%"/>',
            "</svg>",
            "</svg>",
            "",
        ]
    )


def _colours(ground: str, colours: dict[str, str]) -> str:
    return f".ground{{fill:{ground}}}" + "".join(f".c{number}{{fill:{colour}}}" for number, colour in colours.items())


def main(arguments: list[str]) -> None:
    if arguments == ["--record"]:
        CAST.write_text(record())
    SVG.write_text(picture(CAST.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
