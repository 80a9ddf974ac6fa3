"""The serial ports of a machine, as a tree like sysfs tells them, and who has them."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

import test_cli
from asyncrevoke.adapters.device import identity
from asyncrevoke.console.cli import main
from asyncrevoke.console.kernel import holders_of
from ports import serial_line

folder = test_cli.folder  # where the sockets are, for each test


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An adapter with two ports, of which udev has named one, a modem that tells little, two chips, an empty place."""
    monkeypatch.setattr(identity, "SYS", tmp_path)
    monkeypatch.setattr(identity, "DEV", tmp_path / "dev")
    usb = tmp_path / "devices/usb1"
    for place, name, number, driver in (
        (usb / "1-1/1-1:1.0/ttyUSB10", "ttyUSB10", "188:10", "usb-serial/drivers/ftdi_sio"),
        (usb / "1-1/1-1:1.1/ttyUSB2", "ttyUSB2", "188:2", "usb-serial/drivers/ftdi_sio"),
        (usb / "1-2/1-2:1.0", "ttyACM0", "166:0", "usb/drivers/cdc_acm"),
        (tmp_path / "devices/pnp0/00:00/00:00:0/00:00:0.0", "ttyS0", "4:64", "serial-base/drivers/port"),
        (tmp_path / "devices/pnp0/00:00", "", "", "pnp/drivers/serial"),
        (tmp_path / "devices/platform/serial8250", "ttyS1", "4:65", "platform/drivers/serial8250"),
        (tmp_path / "devices/platform/amba", "ttyAMA0", "204:64", ""),
    ):
        place.mkdir(parents=True, exist_ok=True)
        if driver:
            (tmp_path / "bus" / driver).mkdir(parents=True, exist_ok=True)
            (place / "driver").symlink_to(tmp_path / "bus" / driver)
        if name:
            (tmp_path / "class/tty" / name).mkdir(parents=True)
            (tmp_path / "class/tty" / name / "device").symlink_to(place)
            (tmp_path / "class/tty" / name / "dev").write_text(number + "\n")
    (tmp_path / "class/tty/tty1").mkdir()
    for file, text in {
        "devices/usb1/1-1/idVendor": "0403",
        "devices/usb1/1-1/manufacturer": "FTDI",
        "devices/usb1/1-1/product": "Dual\x1b[2J",
        "devices/usb1/1-1/serial": "A10K",
        "devices/usb1/1-2/idVendor": "2341",
        "devices/usb1/1-2/idProduct": "0043",
        "class/tty/ttyS0/type": "4",
        "class/tty/ttyS0/port": "0x3F8",
        "class/tty/ttyS0/irq": "4",
        "class/tty/ttyS0/iomem_base": "0x0",
        "class/tty/ttyS1/type": "0",
    }.items():
        (tmp_path / file).write_text(text + "\n")
    names = tmp_path / "dev/serial/by-id"
    names.mkdir(parents=True)
    (names / "usb-FTDI_Dual_A10K-if00-port0").symlink_to("../../ttyUSB10")
    return tmp_path


def test_ports_are_listed_with_what_is_behind_them(tree: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of their numbers; neither virtual terminals nor places without a chip; no name does anything to a terminal."""
    assert main(["ports", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [tuple(port.values())[:5] for port in found] == [
        (f"{tree}/dev/{name}", *told)
        for name, *told in [
            ("ttyS0", "", "", "serial", "port 0x3F8, irq 4"),
            ("ttyACM0", "", "", "cdc_acm", "2341:0043"),
            ("ttyAMA0", "", "", "", ""),
            ("ttyUSB2", "", "A10K", "ftdi_sio", "FTDI Dual\x1b[2J"),
            ("ttyUSB10", "usb-FTDI_Dual_A10K-if00-port0", "A10K", "ftdi_sio", "FTDI Dual\x1b[2J"),
        ]
    ]
    assert [list(port)[5:] for port in found] == [["shares", "holders"]] * 5
    assert main(["ports"]) == 0
    out = capsys.readouterr().out
    assert out.split("\n")[0].split() == ["PORT", "DRIVER", "SERIAL", "DESCRIPTION", "BY-ID", "HELD", "BY"]
    assert r"FTDI Dual\x1b[2J" in out


def test_machine_without_ports_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that is no error."""
    monkeypatch.setattr(identity, "SYS", tmp_path)
    assert main(["ports"]) == 0
    assert capsys.readouterr() == ("", "asyncrevoke: there are no serial ports\n")


def test_who_has_a_port_is_told(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our shares, by the paths that their servers tell, and the processes of others, by the number of the device."""
    holds = [sys.executable, "-c", "import os, sys; os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY); print(); input()"]
    with serial_line() as line, test_cli.sharing("--name", "lab", line.path) as server:
        path = pathlib.Path(line.path)
        number = path.stat().st_rdev
        (tree / "class/tty/ttyACM0/dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
        (tree / "class/tty/ttyACM0").rename(tree / "class/tty" / path.name)
        monkeypatch.setattr(identity, "DEV", path.parent)
        with subprocess.Popen([*holds, line.path], stdin=-1, stdout=-1, text=True) as other:
            assert other.stdout
            assert other.stdout.readline() == "\n"
            while main(["port", "lab", "--json"]) or not json.loads(capsys.readouterr().out)["path"]:
                capsys.readouterr()
            assert main(["ports", "--json"]) == 0
            found = {port["path"]: port for port in map(json.loads, capsys.readouterr().out.splitlines())}
            assert main(["ports"]) == 0
            other.communicate("")
        assert f"share lab; {min(server.pid, other.pid)} " in capsys.readouterr().out
        held = found.pop(line.path)
        assert held["shares"] == ["lab"]
        assert {holder["pid"]: (holder["user"], holder["how"]) for holder in held["holders"]} == {
            server.pid: ("root", "open"),
            other.pid: ("root", "open"),
        }
        assert not any(port["shares"] or port["holders"] for port in found.values())


def test_who_has_a_port_as_controlling_terminal_is_told() -> None:
    """As `revoke --kernel` tells it; it is not opened for that."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(test_cli.Client("demo"))
        number = os.fstat(client.slave).st_rdev
        client.sees("\n")
        ((found, holder),) = [each for each in holders_of({number}) if each[1].pid == client.process.pid]
        assert (found, holder.how) == (number, "controlling terminal, open")
