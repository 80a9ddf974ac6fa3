"""Plays an instrument on USB (USB-TMC), by the kernel's gadgets: ``python instrument.py FOLDER``, where functionfs is mounted.

It answers what it is asked: ``NAME?``, ``BYTES? n``, ``LENGTH? ...``. A line of its input is what it says unasked. What is
long, it sends in parts of two sizes.
"""

import contextlib
import itertools
import os
import select
import struct
import sys
import threading
from collections import deque

_DESCRIPTIONS, _STRINGS, _SETUP = 3, 2, 4  # include/uapi/linux/usb/functionfs.h
_HEADER = struct.Struct("<BBBxIB3x")
_BYTES = bytes(range(251))
_MOST = 5000, 70000


def described() -> bytes:
    """An interface of the class of instruments, with an endpoint out and one in, for full and for high speed."""
    interface = bytes([9, 4, 0, 0, 2, 0xFE, 3, 0, 1])
    speeds = b"".join(
        interface + b"".join(struct.pack("<BBBBHB", 7, 5, end, 2, size, 0) for end in (0x01, 0x82))
        for size in (64, 512)
    )
    return struct.pack("<IIIII", _DESCRIPTIONS, 20 + len(speeds), 3, 3, 3) + speeds


class Instrument:
    def __init__(self, folder: str) -> None:
        self._control = os.open(f"{folder}/ep0", os.O_RDWR)
        os.write(self._control, described())
        name = struct.pack("<H", 0x409) + b"instrument\0"
        os.write(self._control, struct.pack("<IIII", _STRINGS, 16 + len(name), 1, 1) + name)
        self._out, self._in = (os.open(f"{folder}/ep{number}", os.O_RDWR) for number in (1, 2))
        self._says: deque[bytes] = deque()
        self._asked: tuple[int, int] | None = None
        self._changed = threading.Condition()
        self._sizes = itertools.cycle(_MOST)

    def control(self) -> None:
        """Answer requests of its class: that it has no special capabilities. Who waits in a read keeps the kernel from
        unplugging it.
        """
        os.set_blocking(self._control, False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while poll.poll():
            with contextlib.suppress(BlockingIOError):
                self._answer_control(os.read(self._control, 12))

    def _answer_control(self, event: bytes) -> None:
        if event[8] != _SETUP:
            return
        kind, *_, size = struct.unpack_from("<BBHHH", event)
        if kind & 0x80:
            os.write(self._control, b"\1".ljust(24, b"\0")[:size])
        else:
            os.read(self._control, size)

    def hear(self) -> None:
        message = b""
        while True:
            try:
                data = os.read(self._out, 512)
                kind, tag, _, size, attributes = _HEADER.unpack_from(data)
                while kind == 1 and len(data) < 12 + size:
                    data += os.read(self._out, 512)
            except OSError:  # it is unplugged; the next read waits until it is plugged in
                message, self._asked = b"", None
                self._says.clear()
                continue
            with self._changed:
                if kind == 2:
                    self._asked = tag, size
                else:
                    message += data[12 : 12 + size]
                    if attributes & 1:
                        self._answer(message)
                        message = b""
                self._changed.notify()

    def _answer(self, message: bytes) -> None:
        match message.split(None, 1):
            case [b"NAME?"]:
                self._says.append(b"ACME,1\n")
            case [b"BYTES?", number]:
                self._says.append((_BYTES * (int(number) // len(_BYTES) + 1))[: int(number)])
            case [b"LENGTH?", rest]:
                self._says.append(b"%d" % len(rest))

    def say(self, what: bytes) -> None:
        with self._changed:
            self._says.append(what)
            self._changed.notify()

    def speak(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._says and self._asked)
                assert self._asked
                (tag, most), self._asked = self._asked, None
                says, most = self._says.popleft(), min(most, next(self._sizes))
                part, rest = says[:most], says[most:]
                if rest:
                    self._says.appendleft(rest)
            data = _HEADER.pack(2, tag, tag ^ 255, len(part), not rest) + part
            data += bytes(-len(data) % 4)
            with contextlib.suppress(OSError):  # it is unplugged
                os.write(self._in, data if len(data) % 512 else data + bytes(4))


def main() -> None:
    instrument = Instrument(sys.argv[1])
    for work in instrument.control, instrument.hear, instrument.speak:
        threading.Thread(target=work, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        instrument.say(line.rstrip(b"\n"))
    os._exit(0)


if __name__ == "__main__":
    main()
