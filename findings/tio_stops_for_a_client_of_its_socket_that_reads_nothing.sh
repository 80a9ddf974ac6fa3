#!/bin/bash
# tio stops, with its own terminal, when one client of its --socket reads nothing.
#
# Versions: tio 2.5-1 of Debian 12.
# Expected: who sits at the terminal goes on; the client is disconnected, or loses what it does not take. The manual says
# that writes block while the serial port is disconnected, and nothing of this.
# Seen: output is sent to each client byte by byte, and waited for. Each byte takes a buffer of its own in the kernel, so it
# is full after some 280 of them: nothing more is shown at the terminal then. Only ctrl-t q is still heard.
# Whom it hurts: whoever logs a board by tio and has a script at the socket that was stopped, or that only ever writes.
#
# Needs apt-get install tio. Fails if the terminal gets all that the device sends.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/stall.py" <<'PY'
import os, pty, select, socket, subprocess, sys, time, tty

folder = sys.argv[1]

def shown(stalls):
    """How much of what the device sends gets to the terminal."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    terminal, own = pty.openpty()
    path = f"{folder}/socket{stalls}"
    tio = subprocess.Popen(["tio", "-S", f"unix:{path}", os.ttyname(slave)], stdin=own, stdout=own, stderr=own, start_new_session=True)
    os.close(own)
    said = b""
    while b"Connected" not in said:
        said += os.read(terminal, 4096)
    client = socket.socket(socket.AF_UNIX)
    if stalls:
        client.connect(path)
    sent = got = 0
    end = time.monotonic() + 8
    while time.monotonic() < end:
        if sent < 100_000:
            try:
                sent += os.write(master, b"0123456789\r\n" * 20)
            except BlockingIOError:
                pass
        while select.select([terminal], [], [], 0.001)[0]:
            got += len(os.read(terminal, 65536))
    tio.kill()
    tio.wait()
    for fd in master, slave, terminal:
        os.close(fd)
    client.close()
    return got, sent

alone, with_one = shown(False), shown(True)
for who, (got, sent) in ("nobody", alone), ("one who reads nothing", with_one):
    print(f"{who} at the socket: {sent} bytes taken from the device, {got} shown")
sys.exit(not (alone[0] > 100_000 and with_one[0] < 50_000))
PY
python3 "$folder/stall.py" "$folder"
