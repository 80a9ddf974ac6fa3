"""What the documentation shows runs, and prints what it says."""

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "take_a_pty_away": ["bob: 'console/bob' was revoked: the console is needed elsewhere", "exit status -1"],
    "guard_your_own_stream": ["the reader got: 'connection' was revoked: moved to another host"],
    "own_adapter": ["keeps the contract"],
    "drain_on_sigterm": ["1 kicked, 3 released", "b'done: request\\n' b''"],
    "serial_device_returns": [
        "generation 1: b'17.3 kWh\\n'",
        "(generation 1) was revoked: unplugged",
        "generation 2: ",
    ],
    "scanner_returns": [
        "generation 1 scanned 42\n",
        "(generation 1) was revoked: unplugged",
        "generation 2 scanned 42\n",
    ],
    "hidraw_shared_by_two": [
        "the stick got 00 01",
        "alice got 17 03\n",
        "bob got 17 04 05\n",
        "'stick/alice' was revoked: unplugged: ",
        "'stick/bob' was revoked: unplugged: ",
    ],
    "game_pad_lent": [
        "the game got 1 304 1\n",
        "'alice' revoked (bob's turn): ",
        "the game has lost the pad\n",
    ],
    "home_automation": ["available: 20", "unavailable: unplugged: ", "available: 21"],
    "one_import_changed": ["measured b'17.3\\n'", "lost: '", "was revoked: unplugged: "],
    "alsa_disconnect": [
        "another card has its number: True",
        "in flight: EBADFD",
        "later: ENODEV",
        "the card is freed\nclosed by its owner",
    ],
    "prometheus_metrics": [
        'asyncrevoke_events_total{event="opened"} 5.0',
        'asyncrevoke_events_total{event="released"} 5.0',
        "asyncrevoke_open 0.0",
        "asyncrevoke_revocation_seconds_count 1.0",
    ],
    "live_status_files": [
        "log: b'17.4 kW\\n'",
        "ENODEV: 'status/meter0/log/follower' was revoked: unplugged",
        "left: ['version']",
    ],
    "revoke_any_await": [
        "'ttyUSB0/alice' was revoked: unplugged",
        "port closed\n",
        "'ttyUSB0' revoked (unplugged): 2 kicked, 3 released",
    ],
    "take_a_number_from_a_library": [
        "the library read b'17.3 kW\\n'",
        "the library's read() returned 0",
        "'ttyUSB0' revoked (unplugged)",
    ],
    "revoke_in_all_workers": [
        "{'name': 'alice', 'reason': 'the token was revoked', 'by': ",
        "'kicked': 1, 'released': 2",
    ],
    "lend_to_a_plugin": [
        "measured [1.5, 3.3]",
        "the plugin got: 'meter' was revoked: the plugin is unloaded",
        "what it kept: <proxy of a Channel, <Revokable 'meter' released in_use=0 open=0>>",
    ],
    "oidc_back_channel_logout": [
        "('alice', 'laptop') closed: logged out at the provider\n200",
        '400 {"error":"invalid_request","error_description":"jti was used before"}',
        "('alice', 'phone') closed: logged out at the provider\n200",
        "still open: [('bob',), ('bob', 'desk')]",
    ],
    "caep_session_revoked": [
        "17/laptop/websocket closed: revoked by the identity provider\n202 \n202 \n17/phone",
        '400 {"err":"invalid_request","description":"sub_id names neither',
        "still open: [('4',), ('4', 'pc')]",
    ],
    "kill_terminals_of_a_token": [
        "alice by t1 is closed: the token was revoked",
        "in use: [('bob',), ('bob', 't3')]",
        "alice again is closed: good night",
    ],
}
PAGES = sorted(
    path
    for where in ("index.md", "control-protocol.md", "start/*.md", "how-to/*.md")
    for path in (ROOT / "docs").glob(where)
)
#: A program that stands in a page or is included, and what it prints: the next block of text, up to the next program.
PROGRAM = re.compile(
    r"```(?:python\n(?P<code>.*?)|\{literalinclude\} (?P<file>\S+)\n.*?)```"
    r"(?:(?:(?!```).)*```text\n(?P<printed>.*?)```)?",
    re.DOTALL,
)
STANDARDS = {"oidc_back_channel_logout", "caep_session_revoked"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-"], input=code, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_is_short(example: pathlib.Path) -> None:
    """Each example runs clean, says what it is to show, and fits on a screen; what obeys a standard fits on three."""
    printed = run(example.read_text())
    for line in SAYS[example.stem]:
        assert line in printed
    assert len(example.read_text().splitlines()) < (180 if example.stem in STANDARDS else 45)


def programs() -> Iterator[Any]:
    """Each program of the pages that show some, and what its page says that it prints."""
    for page in PAGES:
        for number, found in enumerate(PROGRAM.finditer(page.read_text())):
            code = found["code"] or (page.parent / found["file"]).read_text()
            yield pytest.param(code, found["printed"], id=f"{page.stem}-{number}")


@pytest.mark.parametrize(("code", "expected"), list(programs()))
def test_program_of_a_page_prints_what_the_page_says(code: str, expected: str | None) -> None:
    """Line by line, but for times, and for what the page leaves out by three dots."""
    assert expected, "the page does not say what its program prints"
    pattern = re.sub(r"\d+\\\.\d{3}\\ s", r"[\\d.]+\\ s", re.escape(expected.strip())).replace(r"\.\.\.", ".*")
    printed = run(code).strip()
    assert re.fullmatch(pattern, printed, re.DOTALL), printed
