#!/bin/bash
# A port that pyserial serves by RFC 2217 cannot be opened by serialx.
#
# Versions: serialx 1.15.1 and pyserial 3.5, on CPython 3.11.7 and Linux.
# Expected: serial.rfc2217.PortManager is what most Python serial servers are made of; a client of the protocol opens its
# port, as pyserial's own client does.
# Seen: pyserial's client opens it. serialx's raises TimeoutError after its connect timeout, each time: it also asks for
# notices of the modem and line state, and waits until that is acknowledged, which PortManager does not do.
# Whom it hurts: whoever changes from pyserial to serialx, and has ports behind such a server, as home automation has: the
# server looks dead.
#
# Fails if any of that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q serialx==1.15.1 pyserial==3.5 2>/dev/null
cat > "$folder/open.py" <<'PY'
import os, pty, socket, sys, threading, tty
import serial, serial.rfc2217, serialx

class Port(serial.Serial):
    """A pty as a serial port: it has no modem lines."""

    cts = dsr = ri = cd = property(lambda self: False)

    def _update_rts_state(self): pass
    def _update_dtr_state(self): pass
    def _update_break_state(self): pass

def served():
    """The url of a port that pyserial serves."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        port = Port(os.ttyname(slave), timeout=0.1)
        connection, _ = server.accept()
        manager = serial.rfc2217.PortManager(port, Sender(connection))
        while data := connection.recv(1024):
            port.write(b"".join(manager.filter(data)))

    threading.Thread(target=serve, daemon=True).start()
    return "rfc2217://127.0.0.1:%d" % server.getsockname()[1]

class Sender:
    def __init__(self, connection):
        self.write = connection.sendall

def opened(open_url):
    try:
        open_url(served())
    except Exception as error:
        return type(error).__name__
    return "opened"

def by_serialx(url):
    serialx.serial_for_url(url, baudrate=9600).open()

found = opened(lambda url: serial.serial_for_url(url, baudrate=9600)), opened(by_serialx)
print("pyserial's client: %s; serialx's: %s" % found, flush=True)
os._exit(found != ("opened", "TimeoutError"))
PY
"$folder/venv/bin/python" "$folder/open.py"
