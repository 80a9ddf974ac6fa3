"""The help of the command line, and the manual pages that are made from it."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import manual
import pytest

from asyncrevoke.console import commands

ROOT = pathlib.Path(__file__).parents[2]
PAGES = manual.pages("1.2.3")
#: What our help must not say: riddles, questions as subjects, and words for one half of the people.
RIDDLES = re.compile(
    r"left out|\bwhose\b|under which|to which|\bis no\b|\bnobody\b|\bh(e|is|im|er|ers)\b|\bshe\b"
    r"|^(of|where|who|what|whatever) ",
    re.IGNORECASE,
)


def shown(page: str) -> str:
    """The page as a reader has it."""
    command = ["man", "-P", "cat", "-l", "-"]
    env = os.environ | {"MANWIDTH": "100", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=PAGES[page], capture_output=True, text=True, env=env, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_command_has_a_page() -> None:
    """And each of its actions; all name each other."""
    of_commands = {f"asyncrevoke-{name}" for name in commands._COMMANDS}
    assert PAGES.keys() >= of_commands | {"asyncrevoke", "asyncrevoke-cluster-readmit"}
    for name, page in PAGES.items():
        for other in PAGES.keys() - {name}:
            assert f"\\fB{other.replace('-', chr(92) + '-')}\\fR(1)" in page


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man: apt-get install man-db")
def test_page_says_what_the_help_says() -> None:
    """In sections of their own, without a word of roff in it."""
    page = shown("asyncrevoke-attach")
    assert re.match(r"ASYNCREVOKE-ATTACH\(1\) +User Commands +ASYNCREVOKE-ATTACH\(1\)", page)
    assert "NAME\n       asyncrevoke-attach - attach this terminal to a share\n" in page
    assert "SYNOPSIS\n       asyncrevoke attach [-h] [--read-only]" in page
    assert re.search(r"AFTER CTRL-\]\n(.*\n)*       t +take the keyboard\n", page)
    assert re.search(r"EXIT STATUS\n       0 +you detached", page)
    assert re.search(r"OPTIONS\n(.*\n)*       --force\n +take the keyboard from its holder\n", page)
    assert re.search(r"ARGUMENTS\n(.*\n)*       revoke\n? +take away a share", shown("asyncrevoke"))
    for name in PAGES:
        assert not re.search(r"\\|^\.", shown(name), re.MULTILINE)


def items() -> list[tuple[str, str]]:
    """Each option and argument of each command, with what is said of it."""
    found = []
    for name, page in PAGES.items():
        for term, text in re.findall(r"^\.TP\n\\fB(.*)\\fR\n(?!\.)(.*)$", page, re.MULTILINE):
            found.append((f"{name} {term}".replace("\\-", "-"), text.replace("\\-", "-").replace(r"\(aq", "'")))
    return found


def test_help_is_in_plain_words() -> None:
    """Short sentences of subject, verb and object; no riddles."""
    assert [f"{of}: {text}" for of, text in items() if RIDDLES.search(text)] == []
    sentences = [each for _, text in items() for each in re.split(r"[.;:] ", text)]
    assert [each for each in sentences if len(each.split()) > 20] == []


def test_every_argument_is_explained() -> None:
    """No option and no argument stands without a word, but for those that stand for several commands."""
    terms = {
        f"{name} {term}"
        for name, page in PAGES.items()
        for term in re.findall(r"^\.TP\n\\fB(.*)\\fR$", page, re.MULTILINE)
    }
    assert {each.replace("\\-", "-") for each in terms} - {of for of, _ in items()} == {
        "asyncrevoke COMMAND",
        "asyncrevoke-cluster ACTION",
    }


def test_pages_are_in_the_wheel(tmp_path: pathlib.Path) -> None:
    """Where `man` finds them beside the program."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as built:
        there = {pathlib.PurePath(name).name for name in built.namelist() if ".data/data/share/man/man1/" in name}
    assert there == {f"{name}.1" for name in PAGES}
