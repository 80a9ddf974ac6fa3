"""Changes each small thing on floors 0 and 1, one at a time: ``python proof/mutants/mutants.py [--only '_core/use.py*']``

A *mutant* is the source with one operator, number or truth value turned round, or with one statement left out. The tests of its
room that run the changed line are run, quick ones first; all tests of the room where the line runs at the import. If none of
them notices, those of the rooms that build on it are run in the same way. What survives needs a test, or a reason in
`equivalents.toml`, which says why nobody can see the change. Exit status 0 means that no survivor is unexplained.
"""

import argparse
import ast
import bisect
import fnmatch
import functools
import pathlib
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import coverage

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "planted"))

import planted  # noqa: E402  # which is beside this folder

PACKAGE = planted.ROOT / "src/asyncrevoke"
#: What takes longest in a room.
SEARCHES = "tests/core/test_interleavings.py"
#: Where the tests are of each room of both floors: its own, then those of the rooms that build on it.
ROOMS = {
    "_core": ("tests/core", "tests/registry", "tests/streams"),
    "_streams": ("tests/streams",),
    "_registry": ("tests/registry",),
}
#: Each operator as it is written, and what it is turned into.
_SIGN: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.And: "and",
    ast.Or: "or",
    ast.Add: "+",
    ast.Sub: "-",
}
_TURNED = {"<": "<=", ">": ">=", "==": "!=", "is": "is not", "in": "not in", "and": "or", "+": "-"}
_TURNED |= {new: old for old, new in _TURNED.items()}


@dataclass(frozen=True)
class Mutant:
    """One change.

    :ivar name: the file, the function, what is changed into what, and which of several alike it is
    :ivar lines: where it is, from the beginning of its statement
    """

    name: str
    file: str
    lines: range
    source: str


class _Changes(ast.NodeVisitor):
    """The changes of one file: from where to where, by what, in which function, and in which lines."""

    def __init__(self, source: str) -> None:
        self.found: list[tuple[int, int, str, str, range]] = []
        self._source = source.encode()
        self._lines = [0]
        for line in self._source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._within: list[str] = []
        self._statement = 1  # its first line
        self._remembering = 0  # the first line of a function around it whose results are cached
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self._statement = node.lineno
        super().visit(node)

    def _at(self, line: int, column: int) -> int:
        return self._lines[line - 1] + column

    def _begin(self, node: ast.expr | ast.stmt) -> int:
        return self._at(node.lineno, node.col_offset)

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._at(node.end_lineno, node.end_col_offset)

    def _change(self, begin: int, end: int, new: str) -> None:
        lines = range(self._remembering or self._statement, bisect.bisect(self._lines, begin) + 1)
        self.found.append((begin, end, new, ".".join(self._within), lines))

    def _turn(self, left: ast.expr, operator: ast.AST, right: ast.expr) -> None:
        """Turn the operator round that stands between two operands."""
        if (sign := _SIGN.get(type(operator))) is None:
            return
        begin, end = self._end(left), self._begin(right)
        at = self._source[begin:end].find(sign.encode())
        if at >= 0:
            self._change(begin + at, begin + at + len(sign), _TURNED[sign])

    def _visit_named(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        if node.name in ("__repr__", "__str__"):  # the tests look at what matters in these
            return
        # One test of many runs a function that remembers: as if it ran at the import.
        remembers = "functools.cache" in map(ast.unparse, node.decorator_list)
        before, self._remembering = self._remembering, node.lineno if remembers else self._remembering
        self._within.append(node.name)
        for each in node.body:
            self.visit(each)
        self._within.pop()
        self._remembering = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_named(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_named(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_named(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Words are no mechanism."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """It is for the type checker."""

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call | ast.Await):
            self._change(self._begin(node), self._end(node), "pass")
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._change(self._begin(node), self._end(node), "pass")

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, node.comparators, strict=False):
            self._turn(left, operator, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._turn(left, node.op, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._turn(node.left, node.op, node.right)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._turn(node.target, node.op, node.value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._change(self._begin(node), self._begin(node) + len("not"), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._change(self._begin(node), self._end(node), str(not node.value))
        elif isinstance(node.value, int):
            self._change(self._begin(node), self._end(node), str(node.value + 1))


def _words(line: bytes) -> str:
    """A line without its indent and its comment, which is often written anew."""
    return " ".join(line.decode().partition("  # ")[0].split())


def mutants(package: pathlib.Path = PACKAGE, rooms: Iterable[str] = ROOMS) -> Iterator[Mutant]:
    """All mutants of these rooms. Their names stay when lines are added elsewhere."""
    seen: Counter[str] = Counter()
    for path in sorted(file for room in rooms for file in (package / room).glob("*.py")):
        file = str(path.relative_to(package))
        text = path.read_text()
        source = text.encode()
        for begin, end, new, within, lines in _Changes(text).found:
            start, stop = source.rfind(b"\n", 0, begin) + 1, source.find(b"\n", end)
            before = _words(source[start:stop])
            after = _words(source[start:begin] + new.encode() + source[end:stop])
            name = f"{file} {within}: {before} -> {after}"
            seen[name] += 1
            changed = (source[:begin] + new.encode() + source[end:]).decode()
            yield Mutant(name + f" ({seen[name]})" * (seen[name] > 1), file, lines, changed)


def equivalents() -> dict[str, str]:
    """Why nobody can see the change, by the name of the mutant."""
    return {
        each["mutant"]: each["reason"] for each in tomllib.loads((HERE / "equivalents.toml").read_text())["equivalent"]
    }


class Covering:
    """Which tests of a room run a line, quick ones first.

    :ivar seconds: after which its tests hang. Some that hang swallow the timeout of a test
    """

    def __init__(self, copy: planted.Copy, room: str, *, quick: bool) -> None:
        times = copy.place / "times.xml"
        self._room = [room, f"--ignore={SEARCHES}"] if quick else [room]
        self._package = copy.place / "src/asyncrevoke"
        lines = [f"--cov={self._package}", "--cov-context=test", "--cov-report="]
        said = copy.run([*self._room, *lines, f"--junit-xml={times}", "-o", "junit_family=xunit1"])
        if said.outcome != "passed":
            raise RuntimeError(f"the tests of {room} must pass without any mutant: {said.where}")
        self.seconds = 30.0 + 2 * said.seconds  # with the lines noted, they take longer than without
        # Each thread that asks opens the file anew, and the next room's run would replace it.
        data = (copy.place / ".coverage").rename(copy.place / f".coverage-{pathlib.PurePath(room).name}")
        self._data = coverage.CoverageData(str(data))
        self._data.read()
        self._took = {
            f"{each.get('classname')}.{each.get('name')}": float(each.get("time", 0.0))
            for each in ET.parse(times).iter("testcase")
        }

    def tests(self, file: str, lines: range) -> list[str]:
        """Their names. Those of the whole room, if the lines run at the import."""
        contexts = self._data.contexts_by_lineno(str(self._package / file))
        found = {context.rpartition("|")[0] for line in lines for context in contexts.get(line, ())}
        return self._room if "" in found else sorted(found, key=self._seconds)

    def _seconds(self, test: str) -> float:
        file, _, name = test.partition(".py::")
        return self._took.get(f"{file.replace('/', '.')}.{name.replace('::', '.')}", 0.0)


def run_all(chosen: Sequence[Mutant], processes: int, *, quick: bool = False) -> Iterator[tuple[Mutant, bool]]:
    """Tell of each whether it has survived."""
    with planted.copies(planted.ROOT, processes) as trees:
        rooms = dict.fromkeys(room for each in chosen for room in ROOMS[each.file.partition("/")[0]])
        covering = dict(trees.map(functools.partial(Covering, quick=quick), rooms))

        def survives(copy: planted.Copy, mutant: Mutant) -> bool:
            rooms = ROOMS[mutant.file.partition("/")[0]]
            found = ((covering[room].tests(mutant.file, mutant.lines), covering[room].seconds) for room in rooms)
            with copy.changed(mutant.file, mutant.source):
                return all(copy.run(tests, seconds).outcome == "passed" for tests, seconds in found if tests)

        yield from trees.map(survives, chosen)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Change each small thing on floors 0 and 1, and see the tests notice.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of these alone: 'file function: *'")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="how many at a time (default: 1)")
    parser.add_argument("--quick", action="store_true", help="leave out the searches of orders, which take long")
    asked = parser.parse_args(argv)
    reasons = equivalents()
    every = list(mutants())
    strange = reasons.keys() - {each.name for each in every}
    chosen = [each for each in every if fnmatch.fnmatch(each.name, asked.only)]
    counts: Counter[str] = Counter()
    for mutant, survived in run_all(chosen, asked.processes, quick=asked.quick):
        explained = mutant.name in reasons
        what = ("equivalent" if explained else "survived") if survived else "not equivalent" if explained else "killed"
        counts[what] += 1
        if what != "killed":
            print(f"{what}: {mutant.name}", flush=True)
    for name in strange:
        print(f"there is no such mutant: {name}")
    print(f"{len(chosen)} of {len(every)} mutants: " + ", ".join(f"{counts[each]} {each}" for each in counts))
    return int(bool(counts["survived"] or counts["not equivalent"] or strange or not chosen))


if __name__ == "__main__":
    sys.exit(main())
