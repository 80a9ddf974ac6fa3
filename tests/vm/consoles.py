"""Serial ports of real kernels that are shared by a console server: what each device is told when its port is changed."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import anyio

from asyncrevoke.console.cli import main
from outside import Outside, gadget, modprobe, until
from unplugs import Row

#: Requests to an adapter of FTDI's, in hexadecimal: kind, number, value, and of flow control the index (ftdi_sio.h).
_DTR_OFF, _DTR_ON, _RTS_OFF = "40 01 0100", "40 01 0101", "40 01 0200"
_NO_FLOW, _RTSCTS = "40 02 0000 0000", "40 02 0000 0100"
_AT_9600, _AT_57600 = "40 03 4138", "40 03 c034"  # divisors of 3 MHz, of which two bits are eighths
_EVEN_7, _ODD_7_2, _BREAK = "40 04 0207", "40 04 1107", "40 04 5107"
#: Requests to a device of the class: the lines, RTS and DTR; then the settings, rate, stop bits, parity, size (cdc.h).
_LINES_OFF, _LINES_DTR = "21 22 0000", "21 22 0001"
_LINE_EVEN_7, _LINE_ODD_7_2 = "= 80250000 000207", "= 00e10000 020107"


class Bus:
    """What goes over the USB, as the kernel's monitor shows it (Documentation/usb/usbmon.rst)."""

    def __init__(self) -> None:
        modprobe("usbmon")
        self._monitor = pathlib.Path("/sys/kernel/debug/usb/usbmon/0u").open()  # noqa: SIM115  # until the machine ends
        self._told: list[str] = []
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        """Read all the time: the kernel keeps a few lines, and throws others away."""
        for line in self._monitor:
            if " S Co:" in line:
                self._told.append(line)

    async def tells(self, *wanted: str) -> None:
        """These requests were made since the last time, in this order, whatever else."""
        try:
            await until(lambda: _in_order(wanted, self._told))
        except TimeoutError:
            raise AssertionError(wanted, self._told) from None
        self._told.clear()


def _in_order(wanted: Iterable[str], lines: list[str]) -> bool:
    rest = iter(lines)
    return all(any(each in line for line in rest) for each in wanted)


def ask(*words: str) -> tuple[int, list[dict[str, Any]], str]:
    """The status of a command, the records that it prints, and what it complains of."""
    with io.StringIO() as out, io.StringIO() as err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*words, "--json"])
        return status, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def port(*words: str) -> dict[str, Any]:
    status, records, said = ask("port", "lab", *words)
    assert status == 0, said
    return records[0]


def refused(why: str, *words: str) -> None:
    assert ask("port", "lab", *words) == (1, [], f"asyncrevoke: 'lab': {why}\n")


def listed(path: str) -> dict[str, Any]:
    (found,) = [each for each in ask("ports")[1] if each["path"] == path]
    return found


def becomes(state: str) -> dict[str, Any]:
    while (found := port())["state"] != state:
        pass
    return found


@contextlib.contextmanager
def sharing(*words: str) -> Iterator[int]:
    """A server, by the number of its process."""
    command = [sys.executable, "-m", "asyncrevoke", "share", "--name", "lab", *words]
    with subprocess.Popen(command, stdout=-1, stderr=-1) as server:
        try:
            assert server.stdout
            assert server.stdout.readline().startswith(b"sharing 'lab'"), server.communicate()[1]
            yield server.pid
        finally:
            server.terminate()


def rows(outside: Outside, _: int) -> Iterator[Row]:
    """Each change of a port is told to the device, in words of its own."""
    bus = Bus()
    for scenario in adapter, modem:
        begun = time.monotonic()
        yield {
            "times": 1,
            **scenario(outside, bus),
            "took": f"{time.monotonic() - begun:.1f} s",
            "ok": True,
        }


def adapter(outside: Outside, bus: Bus) -> Row:
    """Settings, lines and breaks; settings are kept over an unplug; lent away, nobody has the port."""
    with sharing("--settings", "9600e7", "--flow", "rtscts", "--dtr", "off", "RIG1") as server:
        anyio.run(outside.ask, "plug", "usb1")
        path = becomes("live")["path"]
        anyio.run(bus.tells, _DTR_OFF, _EVEN_7, _AT_9600, _RTSCTS)
        lines = port("--settings", "57600o72", "--flow", "none")["lines"]
        anyio.run(bus.tells, _ODD_7_2, _AT_57600, _NO_FLOW)
        assert lines == {"cts": True, "dsr": True, "dcd": True, "ri": False, "dtr": False, "rts": True}, lines
        lines = port("--dtr", "on", "--rts", "off")["lines"]
        anyio.run(bus.tells, _DTR_ON, _RTS_OFF)
        assert (lines["dtr"], lines["rts"]) == (True, False), lines
        port("--break", "0.1")
        anyio.run(bus.tells, _BREAK, _ODD_7_2)
        refused("it does not take these settings", "--databits", "6")
        anyio.run(outside.ask, "unplug", "usb1")
        becomes("away")
        anyio.run(outside.ask, "plug", "usb1")
        becomes("live")
        anyio.run(bus.tells, _ODD_7_2, _AT_57600)
        held = listed(path)
        assert (held["shares"], held["driver"], held["serial"]) == (["lab"], "ftdi_sio", "RIG1"), held
        assert [each["pid"] for each in held["holders"]] == [server], held
        port("--down", "flashing")
        free = listed(path)
        assert (free["shares"], free["holders"]) == ([], []), free
        assert port("--up")["state"] == "live"
        anyio.run(outside.ask, "unplug", "usb1")
    return {"scenario": "ttyUSB: changed while it is shared", "right": f"{held['description']} is told each change"}


def modem(_: Outside, bus: Bus) -> Row:
    """Settings and lines; and that there are no breaks is told as it is."""
    plug = gadget()
    with sharing("--settings", "9600e7", "--dtr", "off", "--rts", "off", "RIG3"):
        anyio.run(plug.plug)
        path = becomes("live")["path"]
        anyio.run(bus.tells, _LINES_OFF, _LINE_EVEN_7)
        port("--settings", "57600o72", "--dtr", "on")
        anyio.run(bus.tells, _LINE_ODD_7_2, _LINES_DTR)
        refused("it cannot send a break", "--break", "0.1")
        chips = [each["description"] for each in ask("ports")[1] if each["driver"] == "serial"]
        assert listed(path)["driver"] == "cdc_acm"
        anyio.run(plug.unplug)
    return {"scenario": "ttyACM: changed while it is shared", "right": f"told each change; beside it are {chips}"}
