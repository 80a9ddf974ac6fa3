"""Plants faults, one at a time, and sees the tests find them: ``python proof/planted/planted.py [--only PATTERN]``

The faults are data, a file for each part of the package: in `file`, the text `old` becomes `new`, and `tests` are run. They
are the kind that an engineer would really make. Each is planted in a copy of the tree, never in the checkout itself.

A fault is *killed* if a test fails, or hangs. It has *survived* if all pass: a test is missing. A survivor that changes
nothing anybody could see is *equivalent*, and the fault says why. The tests that a fault names must pass without it.
"""

import argparse
import contextlib
import fnmatch
import importlib.util
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Literal, TypeVar

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
FEWEST = 60  # faults, or the proof is none
SECONDS = 600.0  # for the tests of one fault
_TEST_SECONDS = 60  # for one test
_COPIED = ("src", "tests", "examples", "benchmarks", "docs", "proof", "*.md", "*.py", "pyproject.toml", "LICENSE")

T = TypeVar("T")
U = TypeVar("U")


class UnsuitableError(Exception):
    """A fault, or its tests, are not what they should be. The message says what to change."""


@dataclass(frozen=True)
class Fault:
    """One change of the source that the tests have to notice.

    :ivar room: the part of the package, which is the name of the faults' file
    :ivar file: below src/asyncrevoke
    :ivar old: text that is there once
    :ivar tests: what pytest is given
    :ivar equivalent: why nobody can see the change. "": somebody can
    """

    name: str
    room: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def plant(self, root: pathlib.Path) -> str:
        """The source of its file with the fault in it.

        :raises UnsuitableError: if the text is not there exactly once, or the result is no Python
        """
        source = (root / "src/asyncrevoke" / self.file).read_text()
        if (times := source.count(self.old)) != 1:
            raise UnsuitableError(f"its text is {times} times in {self.file}")
        planted = source.replace(self.old, self.new)
        try:
            compile(planted, self.file, "exec")
        except SyntaxError as exc:
            raise UnsuitableError(f"{self.file} is no Python any more: {exc}") from exc
        return planted


def faults(here: pathlib.Path = HERE) -> list[Fault]:
    """All faults, by room."""
    return [
        Fault(room=file.stem, tests=tuple(each.pop("tests")), **each)
        for file in sorted(here.glob("*.toml"))
        for each in tomllib.loads(file.read_text())["fault"]
    ]


@dataclass(frozen=True)
class Run:
    """One run of tests.

    :ivar outcome: what it has come to
    :ivar where: the test that failed, or what pytest said last
    """

    outcome: Literal["passed", "failed", "hung", "unsuitable"]
    where: str
    seconds: float


class Copy:
    """A copy of the tree, in which tests are run."""

    def __init__(self, root: pathlib.Path, place: pathlib.Path) -> None:
        self.place = place
        for pattern in _COPIED:
            for each in root.glob(pattern):
                if each.is_dir():
                    shutil.copytree(each, place / each.name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
                else:
                    shutil.copy(each, place)

    @contextlib.contextmanager
    def changed(self, file: str, source: str) -> Iterator[None]:
        """Have a file of the package be another meanwhile."""
        path = self.place / "src/asyncrevoke" / file
        before = path.read_text()
        compiled = pathlib.Path(importlib.util.cache_from_source(path))  # which Python believes for a second
        try:
            compiled.unlink(missing_ok=True)
            path.write_text(source)
            yield
        finally:
            path.write_text(before)
            compiled.unlink(missing_ok=True)

    def run(self, tests: Iterable[str], seconds: float = SECONDS) -> Run:
        """Run tests up to the first that fails."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={_TEST_SECONDS}"]
        environ = {**os.environ, "PYTHONPATH": str(self.place / "src"), "PYTHON_COLORS": "0", "COLUMNS": "200"}
        began = time.monotonic()
        with tempfile.TemporaryFile() as said:
            run = subprocess.Popen(
                # The leader of a session would be hung up with the first terminal that a test opens.
                ["sh", "-c", '"$@"; exit $?', "sh", *command, *tests],
                cwd=self.place,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status: int | None = run.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(run.pid, signal.SIGKILL)
                run.wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
        took = time.monotonic() - began
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
        if status is None:
            return Run("hung", f"after {seconds:g} s", took)
        if status == 0:
            return Run("passed", "", took)
        # A test that has used its time may end the whole run, by a status of its own.
        if failed or "Timeout" in text or status < 0:
            hung = " hangs" * ("Timeout" in text)
            return Run("failed", (failed[0] if failed else f"status {status}") + hung, took)
        return Run("unsuitable", (text.strip().splitlines() or [f"status {status}"])[-1], took)


class Copies:
    """Some copies of the tree, of which each is used by one run at a time."""

    def __init__(self, root: pathlib.Path, place: pathlib.Path, number: int) -> None:
        self._free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for each in range(number):
            (place / str(each)).mkdir()
            self._free.put(Copy(root, place / str(each)))
        self._number = number

    def map(self, call: Callable[[Copy, T], U], given: Iterable[T]) -> Iterator[tuple[T, U]]:
        """Have it called with each, in a copy; they come as they are done."""

        def run(each: T) -> U:
            copy = self._free.get()
            try:
                return call(copy, each)
            finally:
                self._free.put(copy)

        threads = ThreadPoolExecutor(self._number)
        try:
            begun: dict[Future[U], T] = {threads.submit(run, each): each for each in given}
            for done in as_completed(begun):
                yield begun[done], done.result()
        finally:
            threads.shutdown(cancel_futures=True)


@contextlib.contextmanager
def copies(root: pathlib.Path, number: int) -> Iterator[Copies]:
    """Make so many copies of the tree, and remove them."""
    with tempfile.TemporaryDirectory(prefix="planted-") as place:
        os.chmod(place, 0o755)  # noqa: PTH101  # some tests run our programs as another user
        yield Copies(root, pathlib.Path(place), number)


@dataclass(frozen=True)
class Verdict:
    """What became of a fault.

    :ivar what: killed, survived, equivalent, or unsuitable
    :ivar why: by which test; or why it is equivalent, or unsuitable
    """

    fault: Fault
    what: str
    why: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.what:10} {self.seconds:4.0f} s  {self.fault.room}: {self.fault.name}" + f" ({self.why})" * bool(
            self.why
        )


def judge(found: Iterable[Fault], root: pathlib.Path = ROOT, processes: int = 2) -> Iterator[Verdict]:
    """Plant each fault and run its tests, which are run without it first."""
    found = list(found)
    with copies(root, processes) as trees:
        tests = dict.fromkeys(each for fault in found for each in fault.tests)
        sound = dict(trees.map(lambda copy, test: copy.run([test]), tests))

        def one(copy: Copy, fault: Fault) -> Verdict:
            for test in fault.tests:
                if sound[test].outcome != "passed":
                    return Verdict(fault, "unsuitable", f"{test} without it: {sound[test].where}")
            try:
                planted = fault.plant(root)
            except UnsuitableError as exc:
                return Verdict(fault, "unsuitable", str(exc))
            with copy.changed(fault.file, planted):
                run = copy.run(fault.tests)
            if run.outcome == "unsuitable":
                return Verdict(fault, "unsuitable", run.where, run.seconds)
            if run.outcome == "passed":
                what = "equivalent" if fault.equivalent else "survived"
                return Verdict(fault, what, fault.equivalent, run.seconds)
            if fault.equivalent:
                return Verdict(fault, "unsuitable", f"it is not equivalent: {run.where}", run.seconds)
            return Verdict(fault, "killed", run.where, run.seconds)

        for _, verdict in trees.map(one, found):
            yield verdict


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plant faults, one at a time, and see the tests find them.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of these alone: 'room: name', with * and ?")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="how many at a time (default: 2)")
    asked = parser.parse_args(argv)
    found = faults()
    chosen = [each for each in found if fnmatch.fnmatch(f"{each.room}: {each.name}", asked.only)]
    counts: Counter[str] = Counter()
    for verdict in judge(chosen, processes=asked.processes):
        counts[verdict.what] += 1
        print(verdict, flush=True)
    said = ", ".join(f"{counts[what]} {what}" for what in ("killed", "survived", "equivalent", "unsuitable"))
    print(f"{len(chosen)} of {len(found)} faults: {said}")
    if len(found) < FEWEST:
        print(f"that is fewer than {FEWEST}")
    return int(bool(counts["survived"] or counts["unsuitable"] or not chosen or len(found) < FEWEST))


if __name__ == "__main__":
    sys.exit(main())
