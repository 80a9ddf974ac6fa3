#!/bin/bash
# pyserial's socket:// throws away what the other side has sent before open() returns.
#
# Versions: pyserial 3.5, CPython 3.11.7.
# Expected: a TCP connection loses nothing. A serial server that greets ("220 ready"), or a device that talks all the time, is
# read from its first byte, as through any socket.
# Seen: open() connects, then calls reset_input_buffer(), which reads the socket empty. What arrives between the two is gone,
# so the greeting is lost or not as the race goes. Here the client is held up until the greeting has arrived.
# Whom it hurts: gateways whose other end speaks first; they wait for a greeting that they will never see, now and then.
#
# Fails if the greeting arrives.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyserial==3.5
cat > "$folder/greet.py" <<'PY'
import select, socket, sys, threading
import serial

server = socket.create_server(("127.0.0.1", 0))

def greet():
    connection, _ = server.accept()
    connection.sendall(b"220 ready\r\n")
    done.wait(20)
    connection.sendall(b"later\r\n")
    connection.close()

done = threading.Event()
threading.Thread(target=greet).start()
connect = socket.create_connection

def slowly(*args, **options):
    connected = connect(*args, **options)
    select.select([connected], [], [], 20)  # as when the client's machine is busy for a moment
    return connected

socket.create_connection = slowly
port = serial.serial_for_url(f"socket://127.0.0.1:{server.getsockname()[1]}", timeout=20)
done.set()
first = port.readline()
port.close()
print("the greeting was 220 ready; the first line that is read:", first)
sys.exit(first != b"later\r\n")
PY
"$folder/venv/bin/python" "$folder/greet.py"
