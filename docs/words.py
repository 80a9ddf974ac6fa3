"""How long our sentences are: of the README, the docs and the docstrings. `python docs/words.py [FILE ...]` lists them.

Tables, code, headings and the changelog do not count. What stands in backticks is one word. Without files, it also checks the
glossary: its terms are sorted, each is defined once and used, and no word that it rules out is written anywhere.
"""

import ast
import dataclasses
import itertools
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).parents[1]
MOST, AVERAGE = 35, 16
"""Words that a sentence may have, and the average that each room may have."""

FENCE = re.compile(r"^\s*(```|~~~)")
ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.)\s+")
FIELD = re.compile(r"^\s*:\w+(?: [^:]*)?:\s*|^\s*(?:Cancellation|Deadlock|Note):\s*")
"""A field of a docstring, which counts as the beginning of a sentence: `:raises OSError: when it is gone`."""
END = re.compile(r"(?<=[.!?])[)\"'*_]*\s+(?=[^a-z])")
BORDER = re.compile(r"=+( +=+)+$")
"""The first line of a table in reStructuredText, which goes on until a line is empty."""
SHORT = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|Dr|No)\.")


@dataclasses.dataclass(frozen=True)
class Sentence:
    path: pathlib.Path
    line: int
    text: str

    @property
    def words(self) -> int:
        return sum(any(each.isalnum() for each in word) for word in self.text.split())

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.words} words: {self.text}"


def paragraphs(text: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield what is prose in Markdown or in a docstring: (line, paragraph)."""
    fenced = table = False
    margin = 0
    begun, words = first, list[str]()
    for line, written in enumerate([*text.splitlines(), ""], first):
        bare = written.strip()
        indent = len(written) - len(written.lstrip())
        if FENCE.match(written):
            fenced = not fenced
        table = bool(bare and (table or BORDER.match(bare)))
        prose = (
            not fenced
            and not table
            and bare
            and not FENCE.match(written)
            and not re.match(r"[|#<>]|[-=~^]{3,}$|:::|\.\. ", bare)
        )
        code = prose and not words and indent >= margin + 4 and not ITEM.match(written)
        begins = prose and (ITEM.match(written) or FIELD.match(written))
        if words and (not prose or begins):
            yield begun, " ".join(words)
            words = []
        if not bare:
            margin = 0
        if prose and not code:
            begun = begun if words else line
            margin = indent
            words.append(FIELD.sub("", ITEM.sub("", bare)))


def sentences(path: pathlib.Path, text: str, first: int = 1) -> Iterator[Sentence]:
    for line, paragraph in paragraphs(text, first):
        plain = re.sub(r"(``?)[^`]+\1", "CODE", paragraph)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        for each in END.split(SHORT.sub(r"\1", plain)):
            sentence = Sentence(path, line, each)
            if sentence.words > 1:
                yield sentence


def docstrings(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yield each docstring of a file, those below attributes among them: (line, text)."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                first, *rest = text.splitlines() or [""]
                indents = [len(line) - len(line.lstrip()) for line in rest if line.strip()]
                cut = min(indents, default=0)
                yield node.lineno, "\n".join([first, *(line[cut:] for line in rest)])


def of(path: pathlib.Path) -> list[Sentence]:
    if path.suffix == ".py":
        return [each for line, text in docstrings(path) for each in sentences(path, text, line)]
    return list(sentences(path, path.read_text()))


def rooms() -> dict[str, list[pathlib.Path]]:
    """What is measured together: the pages of the root, those of docs/, and each room of the source."""
    source = ROOT / "src" / "asyncrevoke"
    return {
        "pages": [*sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md")],
        "docs": sorted((ROOT / "docs").rglob("*.md")),
        "src": sorted(source.glob("*.py")),
        **{
            f"src/{room.name}": sorted(room.rglob("*.py"))
            for room in sorted(source.iterdir())
            if (room / "__init__.py").exists()
        },
    }


GLOSSARY = ROOT / "docs" / "glossary.md"
_TERM = re.compile(r"^- \*\*(.+?)\*\*: (.+?)(?=^- \*\*|\Z)", re.MULTILINE | re.DOTALL)
_NOT = re.compile(r" Not: (.+)\.$", re.DOTALL)


def glossary(text: str) -> list[tuple[str, list[str]]]:
    """Return the terms of a glossary, in its order, each with the words that must not be used for it."""
    found = []
    for term, told in _TERM.findall(text):
        ruled_out = _NOT.search(told.strip())
        words = re.findall(r"\*(.+?)\*", ruled_out[1], re.DOTALL) if ruled_out else []
        found.append((term, [" ".join(each.split()) for each in words]))
    return found


def faults(text: str, pages: str, written: Iterable[Sentence]) -> Iterator[str]:
    """Yield what is wrong with a glossary.

    :param pages: where each term must be used
    :param written: where no word must be used that the glossary rules out
    """
    known = glossary(text)
    terms = [term for term, _ in known]
    yield from (f"{term}: is defined after {before}" for before, term in itertools.pairwise(terms) if term < before)
    yield from (f"{term}: is defined more than once" for term in sorted({*terms}) if terms.count(term) > 1)
    yield from (f"{term}: is not used" for term in terms if not re.search(rf"\b{term}", pages, re.IGNORECASE))
    rivals = {rival: term for term, ruled_out in known for rival in ruled_out}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, rivals))})(?!\w)", re.IGNORECASE)
    for sentence in written:
        for rival in pattern.findall(sentence.text):
            yield f"{sentence}: {rival!r} is not our word: see {rivals[rival.lower()]!r}"


def wrong_words(paths: Iterable[pathlib.Path] | None = None) -> Iterator[str]:
    """Yield what is wrong with our glossary, and where these files, or all, use a word that it rules out."""
    measured = rooms()
    pages = [path for path in (*measured["pages"], *measured["docs"]) if path != GLOSSARY]
    chosen = itertools.chain(*measured.values()) if paths is None else paths
    written = [each for path in chosen if path != GLOSSARY for each in of(path)]
    return faults(GLOSSARY.read_text(), "\n".join(path.read_text() for path in pages), written)


def average(found: Iterable[Sentence]) -> float:
    words = [each.words for each in found]
    return sum(words) / max(len(words), 1)


def main(names: list[str]) -> int:
    measured = {"given": [pathlib.Path(name).resolve() for name in names]} if names else rooms()
    bad = False
    for room, paths in measured.items():
        found = [each for path in paths for each in of(path)]
        long = [each for each in found if each.words > MOST]
        print(
            f"{room:20} {len(found):5} sentences, {average(found):4.1f} words on the average, {len(long):3} above {MOST}"
        )
        if names:
            print(*long, sep="\n")
        bad = bad or bool(long) or average(found) > AVERAGE
    if not names:
        wrong = list(wrong_words())
        print(*wrong, sep="\n", end="\n" * bool(wrong))
        bad = bad or bool(wrong)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
