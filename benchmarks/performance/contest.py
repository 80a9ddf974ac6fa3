"""A contest: contenders do the same work in turns, and each line of the table compares two of them."""

from __future__ import annotations

import gc
import importlib.util
import pathlib
import resource
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

PACKAGES = {
    "pyserial-asyncio": "serial_asyncio",
    "pyserial-asyncio-fast": "serial_asyncio_fast",
    "serialx": "serialx",
    "uvicorn": "uvicorn",
    "uvloop": "uvloop",
}
PROGRAMS = ("ser2net", "valgrind")


class Line(NamedTuple):
    """The figure of `one` divided by that of `other`.

    :ivar goal: at most so much; None: it only stands beside the others
    :ivar least: at the least so much must be reached where the goal is not
    :ivar absolute: the goal is that of the figure itself, and the other's only stands beside it
    """

    one: str
    other: str
    goal: float | None = None
    least: float = 0.0
    absolute: bool = False


class Result(NamedTuple):
    """A line that was measured; or `why` it was not."""

    what: str
    goal: float | None
    now: float = 0.0
    spread: tuple[float, ...] = ()
    figures: tuple[float, ...] = ()
    unit: str = ""
    verdict: str = ""
    why: str = ""


@dataclass
class Contest:
    """What is measured, in which unit, and by whom.

    :ivar contenders: each gives one figure when it is called; what a name mentions must be installed
    :ivar needs: what else must be
    """

    what: str
    unit: str
    contenders: Mapping[str, Callable[[], float]]
    lines: Sequence[Line]
    rounds: int = 21
    descriptors: int = 0
    ptys: int = 0
    needs: str = ""

    def name(self, line: Line) -> str:
        return f"{self.what}: {line.one} / {line.other}".removesuffix(" / ")

    def lack(self, line: Line) -> str:
        """What is not there that the line needs, or nothing."""
        for word in (*self.name(line).replace(",", "").split(), self.needs):
            if word in PACKAGES and importlib.util.find_spec(PACKAGES[word]) is None:
                return f"{word} is not installed: pip install {word}"
            if word in PROGRAMS and shutil.which(word) is None:
                return f"{word} is not installed: apt-get install {word}"
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if max(soft, hard) < self.descriptors:
            return f"needs {self.descriptors} descriptors, the hard limit is {hard}"
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, self.descriptors), hard))
        limit, used = (int(pathlib.Path(f"/proc/sys/kernel/pty/{name}").read_text()) for name in ("max", "nr"))
        return f"needs {self.ptys} ptys, {limit - used} are free" if limit - used < self.ptys else ""

    def measure(self, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
        """The figures of each, round by round, so that whatever else runs on the machine slows down all alike."""
        found: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for name in names if turn % 2 else reversed(names):
                gc.collect()
                found[name].append(self.contenders[name]())
        return {name: figures[1:] or figures for name, figures in found.items()}  # the first round warms up

    def result(self, line: Line, found: Mapping[str, list[float]]) -> Result:
        one, other = found[line.one], found.get(line.other, [])
        ratios = one if line.absolute else [a / b for a, b in zip(one, other, strict=True)]
        now = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (now,) * 3
        verdict = ""
        if line.goal is not None and now > line.goal:
            verdict = "missed" if now > line.least else f"missed, but below {line.least}"
        figures = tuple(statistics.median(each) for each in (one, other) if each)
        return Result(self.name(line), line.goal, now, (low, high), figures, self.unit, verdict)

    def run(self, only: str, rounds: int) -> list[Result]:
        """Measure the lines with `only` in their names. A line that cannot be measured does not stop the others."""
        lines = [line for line in self.lines if only in self.name(line)]
        results = {line: Result(self.name(line), line.goal, why=self.lack(line)) for line in lines}
        left = [line for line in lines if not results[line].why]
        names = dict.fromkeys(name for line in left for name in (line.one, line.other) if name)
        try:
            found = self.measure(list(names), rounds) if left else {}
        except Exception as error:  # noqa: BLE001  # whatever a peer raises
            return [result._replace(why=result.why or f"failed: {error!r}") for result in results.values()]
        return [self.result(line, found) if line in left else result for line, result in results.items()]
