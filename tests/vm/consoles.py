"""A serial adapter of a real kernel's that is shared by a console server: what it is told on its bus when the port is changed."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import anyio

from asyncrevoke.console.cli import main
from outside import Outside, modprobe
from unplugs import Row

#: Requests of a driver to an adapter of FTDI's, and their values (drivers/usb/serial/ftdi_sio.h).
_LINES, _FLOW, _RATE, _DATA = 1, 2, 3, 4
_EVEN_7, _ODD_7_2, _BREAK = 0x0207, 0x1107, 0x4000
_NO_FLOW, _RTSCTS = 0, 0x0100
_RATES = {9600: 0x4138, 57600: 0xC034}  # divisors of 3 MHz, of which two bits are eighths
_DTR_ON, _RTS_OFF, _DTR_OFF = 0x0101, 0x0200, 0x0100


class Bus:
    """What goes over the USB, as the kernel's monitor shows it (Documentation/usb/usbmon.rst)."""

    def __init__(self) -> None:
        modprobe("usbmon")
        self._fd = os.open("/sys/kernel/debug/usb/usbmon/0u", os.O_RDONLY | os.O_NONBLOCK)
        self._lines = b""

    def told(self) -> list[tuple[int, int]]:
        """The vendor's requests since the last time, each with what it tells: of flow control that is in the index."""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._fd, 65536):
                self._lines += more
        *lines, self._lines = self._lines.split(b"\n")
        setups = [line.split()[5:10] for line in lines if b" S Co:" in line]
        asked = [[int(number, 16) for number in setup] for setup in setups]
        return [(what, index if what == _FLOW else value) for kind, what, value, index, _ in asked if kind == 0x40]


def ask(*words: str) -> tuple[int, list[dict[str, Any]], str]:
    """The status of a command, the records that it prints, and what it complains of."""
    with io.StringIO() as out, io.StringIO() as err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*words, "--json"])
        return status, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def port(*words: str) -> dict[str, Any]:
    status, (record,), said = ask("port", "lab", *words)
    assert status == 0, said
    return record


def live() -> dict[str, Any]:
    while (record := port())["state"] != "live":
        pass
    return record


def shared(outside: Outside, _: int) -> Iterator[Row]:
    """Each change of the share's port is one on the bus; it is kept over an unplug; lent away, nobody has the port."""
    begun = time.monotonic()
    bus = Bus()
    options = ["--settings", "9600e7", "--flow", "rtscts", "--dtr", "off"]
    command = [sys.executable, "-m", "asyncrevoke", "share", "--name", "lab", *options, "RIG1"]
    with subprocess.Popen(command, stdout=-1, stderr=-1) as server:
        try:
            assert server.stdout
            assert server.stdout.readline().startswith(b"sharing 'lab'"), server.communicate()[1]
            anyio.run(outside.ask, "plug", "usb1")
            node = live()["path"]
            _assert_told(bus, (_LINES, _DTR_OFF), (_DATA, _EVEN_7), (_RATE, _RATES[9600]), (_FLOW, _RTSCTS))
            lines = port("--settings", "57600o72", "--flow", "none")["lines"]
            _assert_told(bus, (_DATA, _ODD_7_2), (_RATE, _RATES[57600]), (_FLOW, _NO_FLOW))
            assert (lines["dtr"], lines["cts"], lines["dsr"], lines["dcd"]) == (False, True, True, True), lines
            lines = port("--dtr", "on", "--rts", "off")["lines"]
            _assert_told(bus, (_LINES, _DTR_ON), (_LINES, _RTS_OFF))
            assert (lines["dtr"], lines["rts"]) == (True, False), lines
            port("--break", "0.1")
            _assert_told(bus, (_DATA, _BREAK | _ODD_7_2), (_DATA, _ODD_7_2))
            refused = ask("port", "lab", "--databits", "6")
            assert refused[0] == 1, refused
            assert "it does not take these settings" in refused[2], refused
            anyio.run(outside.ask, "unplug", "usb1")
            while port()["state"] == "live":
                pass
            bus.told()
            anyio.run(outside.ask, "plug", "usb1")
            live()
            _assert_told(bus, (_DATA, _ODD_7_2), (_RATE, _RATES[57600]))
            (held,) = [each for each in ask("ports")[1] if each["path"] == node]
            assert (held["shares"], held["driver"], held["serial"]) == (["lab"], "ftdi_sio", "RIG1"), held
            assert [each["pid"] for each in held["holders"]] == [server.pid], held
            port("--down", "flashing")
            (free,) = [each for each in ask("ports")[1] if each["path"] == node]
            assert (free["shares"], free["holders"]) == ([], []), free
            port("--up")
            live()
            anyio.run(outside.ask, "unplug", "usb1")
        finally:
            server.terminate()
    chips = [each["description"] for each in ask("ports")[1]]
    yield {
        "scenario": "ttyUSB: changed while it is shared",
        "times": 1,
        "right": f"each change is one on the bus; {held['description']}; else {chips}",
        "took": f"{time.monotonic() - begun:.1f} s",
        "ok": True,
    }


def _assert_told(bus: Bus, *wanted: tuple[int, int]) -> None:
    """These requests were made, in this order, whatever else."""
    told = bus.told()
    rest = iter(told)
    assert all(each in rest for each in wanted), (wanted, [(what, hex(value)) for what, value in told])
