#!/bin/bash
# zigpy-znp lets a request wait for its timeout when the radio behind it has been unplugged.
#
# Versions: zigpy-znp 1.1.1, with zigpy and serialx 1.15.1, on CPython 3.11.
# Expected: the library is told at once that the port is gone (connection_lost), so the request that is under way fails at
# once, with an error that says so.
# Seen: the application is told at once. The request goes on waiting until its own timeout, by default 15 s (here 3 s), and
# is a TimeoutError then, as if the radio were slow. The next request is an AttributeError: 'NoneType' object has no
# attribute 'write'.
# Whom it hurts: whoever acts on the error of a request. The integration of a home hangs for 15 s for each request when the
# stick is pulled, and then blames the radio. Act on connection_lost of the application, and cancel the requests.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q zigpy-znp==1.1.1 serialx==1.15.1
cat > "$folder/look.py" <<'PY'
import asyncio, functools, logging, operator, os, sys, time, tty
import zigpy_znp.commands as c
from zigpy_znp.api import ZNP
from zigpy_znp.zigbee.application import ControllerApplication

logging.disable()
PING, CAPABILITIES = b"\x21\x01", b"\x79\x00"
near, line = os.openpty()
tty.setraw(line)


class Told:
    """Stands for the application: it only wants to know."""

    def __init__(self):
        self.lost = asyncio.Event()

    def connection_lost(self, exc):
        self.lost.set()


def radio():
    """Answer a ping, and nothing else."""
    request = os.read(near, 4096)
    if PING in request:
        frame = bytes((len(CAPABILITIES), PING[0] + 0x40, PING[1])) + CAPABILITIES
        os.write(near, b"\xfe" + frame + bytes((functools.reduce(operator.xor, frame),)))


async def main():
    asyncio.get_running_loop().add_reader(near, radio)
    config = {"device": {"path": os.ttyname(line), "baudrate": 115200, "flow_control": None}, "znp_config": {}}
    config = ControllerApplication.SCHEMA(config)
    config["znp_config"].update(sync_request_timeout=3, skip_bootloader=True)
    znp, told = ZNP(config), Told()
    await znp.connect(test_port=False)
    znp.set_application(told)
    await znp.request(c.SYS.Ping.Req())
    os.close(line)
    request = asyncio.ensure_future(znp.request(c.SYS.Version.Req()))
    await asyncio.sleep(0.1)
    asyncio.get_running_loop().remove_reader(near)
    began = time.monotonic()
    os.close(near)  # the stick is pulled
    await asyncio.wait_for(told.lost.wait(), 2)
    after = time.monotonic() - began
    (outcome,) = await asyncio.gather(request, return_exceptions=True)
    waited = time.monotonic() - began
    try:
        await znp.request(c.SYS.Version.Req())
    except Exception as exc:
        later = exc
    print(f"told after {after:.1f} s; the request ended after {waited:.1f} s, with {outcome!r}; the next one: {later!r}")
    sys.exit(not (after < 1 and waited > 2.5 and type(outcome) is TimeoutError and type(later) is AttributeError))


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py"
