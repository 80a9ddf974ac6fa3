"""Run the own asyncio tests of serialx and of pyserial-asyncio on our stand-ins: ``python benchmarks/peers_own_tests.py``

Their source distributions are downloaded by pip into a temporary folder; only their constructors are replaced by ours. It
needs pytest-asyncio, pytest-timeout, psutil and socat, and exits with 77 where there is no network. Printed is what does not
pass, beside the reason that is known here; anything else makes it exit with 1.
"""

import pathlib
import subprocess
import sys
import tempfile

SERIALX, PYSERIAL_ASYNCIO = "serialx==1.15.1", "pyserial-asyncio==0.6"

PLUG = """
import serialx
from asyncrevoke.compat import serialx as ours

for name in (
    *("AsyncSerial", "BaseSerialTransport", "SerialTransport", "SerialStreamWriter", "async_serial_for_url"),
    *("create_serial_connection", "get_serial_classes", "open_serial_connection"),
):
    setattr(serialx, name, getattr(ours, name))
"""
PLUG_PYSERIAL = """
import sys
from asyncrevoke.compat import serial_asyncio

sys.modules["serial_asyncio"] = serial_asyncio
"""
#: Part of a test's name, and why it does not pass.
KNOWN = {
    "close_without_wait_closed_no_warnings": "a loop that is closed and not shut down leaves the epoll of its watches",
    "graceful_peer_close_does_not_raise": "a connection that ends is an error here, not the end of data",
    "test_async_invalid_uri": "another message",
    "cancel_during_connect_no_callbacks[lazy_tasks-SOCKET]": "a thread closes what it has connected too late",
    "test_async_connect_cancel[SOCKET]": "a thread closes what it has connected too late",
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps"]
        if subprocess.run([*pip, "-d", folder, SERIALX, PYSERIAL_ASYNCIO], check=False).returncode:
            print("they cannot be downloaded")
            return 77
        for archive in place.glob("*.tar.gz"):
            subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
        serialx, pyserial = (next(place.glob(f"{name}-*/")) for name in ("serialx", "pyserial-asyncio"))
        (serialx / "serialx").rename(serialx / "theirs")  # that which is installed is tested
        (serialx / "tests/plug.py").write_text(PLUG)
        (pyserial / "test/plug.py").write_text(PLUG_PYSERIAL)
        kinds = "(SOCAT or SOCKET or not serial_pair) and not posix and not SER2NET"
        failed = run(serialx, "tests.plug", *(f"tests/test_async_{part}.py" for part in PARTS), "-k", kinds)
        return failed | run(pyserial, "test.plug", "test/test_asyncio.py")


PARTS = ("lifecycle", "serial", "transports")


def run(place: pathlib.Path, plug: str, *tests: str) -> int:
    """Run them, print what does not pass, and report whether there is any that is not known."""
    options = ["-q", "-p", plug, "-o", "addopts=", "-o", "asyncio_mode=auto", "-o", "filterwarnings=default", "-rfE"]
    command = [sys.executable, "-m", "pytest", *options, "--timeout", "40", "--tb=no", *tests]
    lines = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False).stdout.splitlines()
    new = 0
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            reason = next((why for part, why in KNOWN.items() if part in line), "NOT KNOWN")
            new |= reason == "NOT KNOWN"
            print(f"{line.split(' - ')[0]}: {reason}")
    print(f"{place.name}: {lines[-1] if lines else 'nothing was run'}")
    return new | (not lines)


if __name__ == "__main__":
    sys.exit(main())
