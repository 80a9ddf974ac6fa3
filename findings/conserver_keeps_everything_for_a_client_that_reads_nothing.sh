#!/bin/bash
# conserver keeps all output for a client that reads nothing, without an end: its memory grows until there is none left.
#
# Versions: conserver 8.2.7-2+b1 of Debian 12 (server and client).
# Expected: who does not take what is sent is held up, loses output, or is disconnected at some point.
# Seen: the others go on at full speed, and the process of their consoles grows by all that the one has not read, here by
# tens of megabytes in seconds. Nothing is said, and nobody is disconnected. A client that is stopped by ctrl-Z does it.
# Whom it hurts: the server, with all its consoles, when one `console` is suspended in a terminal and its device talks on.
#
# Needs apt-get install conserver-server conserver-client. Fails if its memory grows by less than 20 MB meanwhile.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
cat > "$folder/conserver.cf" <<'CF'
config * { sslrequired no; }
console flood { master localhost; rw *; type exec; exec "stty raw; read line; exec yes abcdefghijklmnopqrstuvwxyz0123456789"; }
access * { trusted 127.0.0.1; trusted ::1; }
CF
: > "$folder/passwd"
/usr/sbin/conserver -n -M 127.0.0.1 -p 24784 -C "$folder/conserver.cf" -P "$folder/passwd" > "$folder/log" 2>&1 &
server=$!
cat > "$folder/clients.py" <<'PY'
import os, pathlib, pty, select, subprocess, sys, time

CONSOLE = ["console", "-M", "127.0.0.1", "-p", "24784", "-E"]
server = int(sys.argv[1])
for _ in range(300):  # it has to come up
    if subprocess.run([*CONSOLE, "-u"], capture_output=True).returncode == 0:
        break
    time.sleep(0.1)

def attach(*options):
    master, slave = pty.openpty()
    process = subprocess.Popen([*CONSOLE, *options, "flood"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    said = b""
    while b"help]" not in said:
        said += os.read(master, 4096)
    return process, master

def memory():
    children = pathlib.Path(f"/proc/{server}/task/{server}/children").read_text().split()
    statm = [int(pathlib.Path(f"/proc/{child}/statm").read_text().split()[1]) for child in children]
    return sum(statm) * os.sysconf("SC_PAGESIZE")

stalled, _ = attach("-s", "-l", "bob")  # its terminal is read by nobody from here on
reader, terminal = attach("-l", "ann")
before, read = memory(), 0
os.write(terminal, b"\r")
end = time.monotonic() + 20
while time.monotonic() < end and memory() < before + 40_000_000:
    if select.select([terminal], [], [], 1)[0]:
        read += len(os.read(terminal, 65536))
grown = memory() - before
print(f"the one who reads has got {read / 1e6:.0f} MB; the server has grown by {grown / 1e6:.0f} MB")
for each in stalled, reader:
    each.kill()
    each.wait()
sys.exit(grown < 20_000_000)
PY
python3 "$folder/clients.py" "$server"
