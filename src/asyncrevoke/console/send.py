"""Types text into a share and prints the answers, for scripts."""

import argparse
import base64
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

import anyio

from asyncrevoke.control.client import Control, Record
from asyncrevoke.control.lines import VERSION, ControlError

from .commands import complain
from .sockets import look

_ENDS = {"cr": b"\r", "lf": b"\n", "crlf": b"\r\n", "none": b""}
_FOUND = 0
_STATUS = {"forbidden": 1, "timeout": 3, "revoked": 4, "away": 5, "keyboard": 6}
_LONGEST = 1024  # bytes that `until` may match, which bounds the cost of a byte of output
_QUIET = 1.0  # seconds without output after which no echo is expected any more
_PIECE = 32768  # bytes that are typed with one line of the protocol

Until = re.Pattern[bytes] | None


def run(args: argparse.Namespace) -> int:
    """Type texts in turn, each after the answer to the one before. Return the exit status."""
    steps = _steps(args)

    async def talk() -> None:
        async with await look(args.socket) as servers:
            await _Talk(await servers.sharing(args.name), args).run(steps)

    try:
        anyio.run(talk)
    except ControlError as error:
        if error.code not in _STATUS:
            raise
        complain(f"{args.name}: {error}")
        return _STATUS[error.code]
    finally:
        sys.stdout.flush()
    return _FOUND


def _steps(args: argparse.Namespace) -> list[tuple[bytes, Until]]:
    """Return each text to type, with the pattern that ends its answer."""
    try:
        untils: list[Until] = [re.compile(os.fsencode(each), re.MULTILINE) for each in args.until] or [None]
    except re.error as error:
        args.usage(f"send: --until is not a regular expression: {error}")
    if len(untils) == 1:
        untils *= len(args.text)
    if len(untils) != len(args.text):
        args.usage("send: give one --until for each TEXT, or one for all")
    return [
        (each, until)
        for text, until in zip(args.text, untils, strict=True)
        for each in (sys.stdin.buffer.read().splitlines() if text == "-" else [os.fsencode(text)])
    ]


class Answer:
    """The output after a text was typed, from the echo of the text on. It is fed piece by piece.

    :ivar until: pattern that ends it
    :ivar found: whether the pattern has come, after the echo
    :ivar likely: whether the pattern has come, but no echo before it. Perhaps there is none
    """

    def __init__(self, echo: bytes, until: re.Pattern[bytes], *, prompt: bool = True) -> None:
        self.until = until
        self.found = self.likely = False
        self._echo = echo  # which may still come. Empty: it has come, or is no longer expected
        self._prompt = prompt
        self._text = b""
        self._searched = 0
        self._return = b""  # a return at the end of the data, which may belong to the end of a line

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """Take output, and return what is certainly part of the answer. Its lines end in a newline only.

        :param last: whether no echo is expected any more
        """
        data = self._return + data
        self._return = b"\r" if data.endswith(b"\r") and not last else b""
        self._text += data[: len(data) - len(self._return)].replace(b"\r\n", b"\n")
        if self._echo and self._echo in self._text:
            self._text, self._echo, self._searched = self._text.partition(self._echo)[2], b"", 0
        if last or len(self._text) > _LONGEST + len(self._echo):
            self._echo = b""
        match = self.until.search(self._text, max(0, self._searched - _LONGEST))
        self.found, self.likely = bool(match) and not self._echo, bool(match)
        if match and self.found:
            return self._text[: match.end() if self._prompt else self._text.rfind(b"\n", 0, match.start()) + 1]
        if self._echo:
            return b""
        size = len(self._text) if last else max(0, len(self._text) - _LONGEST)
        certain, self._text = self._text[:size], self._text[size:]
        self._searched = len(self._text)
        return certain


class _Talk:
    def __init__(self, control: Control, args: argparse.Namespace) -> None:
        self._control = control
        self._args = args
        self._answer: Answer | None = None
        self._patient = False  # whether to wait for the keyboard and the device
        self._yours: bool | None = None  # whether the keyboard is ours. None: it is not known yet
        self._holder = self._why = ""
        self._away = ""
        self._leaving = self._left = False

    async def run(self, steps: list[tuple[bytes, Until]]) -> None:
        mode = "force" if self._args.force else "write"
        await self._control.send(
            {"v": VERSION, "do": "attach", "name": self._args.name, "mode": mode, "wait": True, "history": False}
        )
        until: Until = None
        for text, until in steps:
            self._patient = self._args.wait
            await self._hear_until(lambda: bool(self._yours) and not self._away, "the server does not answer")
            self._patient = False
            await self._type(text, until)
        if not self._left:  # otherwise the server may have gone with the share
            self._leaving = True
            try:
                await self._control.send({"detach": True})
                await self._hear_until(lambda: self._left, "not all text was taken")
            except ControlError as error:
                if until is None or error.code not in ("gone", "revoked"):
                    raise  # otherwise the server has gone after it sent the answer

    async def _type(self, text: bytes, until: Until) -> None:
        end = _ENDS[self._args.end]
        if until is not None:
            echo = (text + b"\n" * bool(end)) * self._args.echo
            self._answer = Answer(echo, until, prompt=self._args.prompt)
        typed = text + end
        for start in range(0, len(typed), _PIECE):
            await self._control.send({"data": base64.b64encode(typed[start : start + _PIECE]).decode()})
        if (answer := self._answer) is not None:
            try:
                await self._hear_until(lambda: answer.found, f"{os.fsdecode(answer.until.pattern)!r} did not come")
            except ControlError:
                with contextlib.suppress(TimeoutError):
                    self._print(answer, b"", 1.0, last=True)
                if not answer.found:
                    raise
            self._answer = None

    async def _hear_until(self, ready: Callable[[], bool], else_: str) -> None:
        """Take what the server sends, until `ready()` is true.

        :param else_: what is wrong if it never is, for the message
        :raises ControlError: "timeout", or another error
        """
        try:
            with anyio.fail_after(self._args.timeout) as scope:
                while not ready():
                    await self._hear(scope)
                    if self._why or not self._patient:
                        self._check()
        except TimeoutError:
            self._check()
            raise ControlError("timeout", f"{else_} within {self._args.timeout:g} s") from None

    async def _hear(self, within: anyio.CancelScope) -> None:
        answer = self._answer
        left = within.deadline - anyio.current_time()
        with anyio.move_on_after(_QUIET if answer is not None and answer.likely else None):
            self._take(await self._control.receive(), left)
            return
        if answer is not None:
            self._print(answer, b"", left, last=True)

    def _take(self, record: Record, left: float) -> None:
        match record:
            case {"data": data} if self._answer is not None:
                self._print(self._answer, base64.b64decode(str(data)), left)
            case {"keyboard": holder, "yours": yours}:
                self._holder, self._yours = str(holder or "nobody"), bool(yours)
                self._why = str(record.get("reason") or "")
            case {"refused": "type", "message": why}:
                raise ControlError("forbidden", str(why))
            case {"away": why}:
                self._away = str(why)
            case {"back": _}:
                self._away = ""
            case {"ended": why}:
                self._left = True
                if not self._leaving:
                    raise ControlError("revoked", str(why))

    def _check(self) -> None:
        if self._away:
            raise ControlError("away", f"away: {self._away}. --wait waits until it is back")
        if self._why:
            raise ControlError("keyboard", f"you may not type there: {self._why}")
        if self._yours is False:
            advice = "it did not come free" if self._args.wait else "--force takes it, --wait waits for it"
            raise ControlError("keyboard", f"{self._holder} has the keyboard: {advice}")

    def _print(self, answer: Answer, data: bytes, left: float, *, last: bool = False) -> None:
        with _alarm(left):
            sys.stdout.buffer.write(answer.feed(data, last=last))


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` after so many seconds. Only a signal ends a search that would take years."""

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
