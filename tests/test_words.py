"""Our words: sentences are short, and each term of the glossary is the one that is used."""

import pathlib
import textwrap

import pytest
import words

ROOMS = words.rooms()


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_sentences_are_short(room: str) -> None:
    """In each room they have 16 words on the average at most, and none has more than 35."""
    found = [each for path in ROOMS[room] for each in words.of(path)]
    assert found
    assert [str(each) for each in found if each.words > words.MOST] == []
    assert words.average(found) <= words.AVERAGE


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_the_words_are_those_of_the_glossary(room: str) -> None:
    """Its terms are sorted, defined once and used, and no word that it rules out is written in the room."""
    assert list(words.wrong_words(ROOMS[room])) == []


def test_the_glossary_is_read() -> None:
    """Each of its items is a term, and some rule words out."""
    text = words.GLOSSARY.read_text()
    known = words.glossary(text)
    assert len(known) == text.count("\n- **") > 30
    assert sum(bool(ruled_out) for _, ruled_out in known) == text.count(" Not: ") > 5


def test_long_sentences_are_found() -> None:
    """In prose and in docstrings, by their line; code, tables and headings have none."""
    long = "word " * 36 + "end."
    page = f"# {long}\n\n| {long} |\n\n```\n{long}\n```\n\nShort one. It is `{long}` here.\n\n- {long}\n"
    found = list(words.sentences(pathlib.Path("page.md"), page))
    assert [(each.line, each.words) for each in found] == [(9, 2), (9, 4), (11, 37)]
    assert words.average(found) == pytest.approx(43 / 3)


def test_docstrings_are_prose(tmp_path: pathlib.Path) -> None:
    """Also those below attributes; a field begins a sentence."""
    module = tmp_path / "module.py"
    module.write_text(
        '"""Of a module."""\n\nX = 1\n"""Below an attribute.\n\n:param x: one of it\n:returns: the other\n"""\n'
    )
    assert [(each.line, each.text) for each in words.of(module)] == [
        (1, "Of a module."),
        (4, "Below an attribute."),
        (6, "one of it"),
        (7, "the other"),
    ]


def test_faults_of_a_glossary_are_found() -> None:
    """A term out of order, one that is defined twice, one that is not used, and a word that is ruled out."""
    text = textwrap.dedent(
        """\
        # Glossary

        - **kick**: To end it. Not: *throw
          out*, *boot*.
        - **drain**: To wait.
        - **kick**: Again.
        - **zeal**: Much of it. It is not: a rival.
        """
    )
    written = words.sentences(
        pathlib.Path(words.ROOT, "page.md"), "They boot. To Throw out is bad. Boots and rebooting.\n"
    )
    assert list(words.faults(text, "Kicks, drains.", written)) == [
        "drain: is defined after kick",
        "kick: is defined more than once",
        "zeal: is not used",
        "page.md:1: 2 words: They boot.: 'boot' is not our word: see 'kick'",
        "page.md:1: 5 words: To Throw out is bad.: 'Throw out' is not our word: see 'kick'",
    ]
