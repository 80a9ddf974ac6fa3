"""How results are shown: as rows of text, and in docs/performance.md as a table and a plot."""

from __future__ import annotations

import html
import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Sequence

from contest import Result

DOCS = pathlib.Path(__file__).parents[2] / "docs"
HEAD = f"{'what':68} {'goal':>5} {'now':>6} {'spread':>13} {'ours':>8} {'theirs':>8}"
PACKAGES = ("anyio", "pyserial", "pyserial-asyncio", "pyserial-asyncio-fast", "serialx", "uvloop")
STYLE = (
    "text{font:12px sans-serif;fill:#1f2328}.met{fill:#3b82c4}.missed{fill:#d1622b}line{stroke:#1f2328}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}line{stroke:#e6edf3}}"
)


def machine() -> str:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    system = f"{os.cpu_count()} processors, Linux {platform.release()}, Python {platform.python_version()}"
    return ", ".join([system, *versions])


def digits(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.2f}" if figure < 100 else f"{figure:.0f}"


def row(result: Result) -> str:
    begin = f"{result.what:68} {digits(result.goal):>5}"
    if result.why:
        return f"{begin} not measured: {result.why}"
    spread = "..".join(map(digits, result.spread))
    ours, theirs = (*map(digits, result.figures), "")[:2]
    return f"{begin} {digits(result.now):>6} {spread:>13} {ours:>8} {theirs:>8} {result.unit} {result.verdict}".rstrip()


def table(results: Sequence[Result]) -> str:
    lines = ["| what | goal | now | spread | ours | theirs | |", "|---|--:|--:|--:|--:|--:|---|"]
    for result in results:
        cells = [result.what, digits(result.goal)]
        if result.why:
            cells += ["", "", "", "", f"not measured: {result.why}"]
        else:
            ours, theirs = (*(f"{digits(each)} {result.unit}" for each in result.figures), "")[:2]
            cells += [digits(result.now), "..".join(map(digits, result.spread)), ours, theirs, result.verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[Result]) -> str:
    """A bar for each row: its figure divided by its goal, and cut off at two and a half times that."""
    left, unit, most, step = 440, 160, 2.5, 20
    drawn = [(result, result.now / result.goal) for result in results if result.goal and not result.why]
    height = step * len(drawn) + 30
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + unit * most + 50:.0f}" height="{height}">']
    parts += [f"<style>{STYLE}</style>", f'<text x="{left + unit}" y="14" text-anchor="middle">goal</text>']
    for number, (result, times) in enumerate(drawn):
        top = 22 + step * number
        width, kind = unit * min(times, most), "met" if times <= 1 else "missed"
        parts.append(f'<text x="{left - 8}" y="{top + 12}" text-anchor="end">{html.escape(result.what)}</text>')
        parts.append(f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.0f}" height="{step - 5}"/>')
        parts.append(f'<text x="{left + unit * most + 40:.0f}" y="{top + 12}" text-anchor="end">{times:.2f}</text>')
    parts.append(f'<line x1="{left + unit}" y1="18" x2="{left + unit}" y2="{height - 8}" stroke-dasharray="3"/></svg>')
    return "\n".join(parts) + "\n"


def write(results: Sequence[Result]) -> None:
    """Write the plot, and what stands between two comments in the page."""
    (DOCS / "performance.svg").write_text(plot(results))
    page = DOCS / "performance.md"
    measured = f"<!-- measured -->\n{machine()}.\n\n{table(results)}\n<!-- until here -->"
    text = re.sub(r"<!-- measured -->.*<!-- until here -->", lambda _: measured, page.read_text(), flags=re.DOTALL)
    page.write_text(text)
