#!/bin/bash
# Debian's redis-server forgets entries that it has acknowledged, and a reader of the stream then waits for ever.
#
# Versions: redis-server 7.0.15 of Debian 12 with its own /etc/redis/redis.conf; redis 8.1.0 for Python on CPython 3.11.
# Expected: what was acknowledged a while ago is there after a crash; or whoever had read it is told that it is gone.
# Seen: of 50 entries none is left after kill -9 and a restart. XREAD after the last id that was read answers nothing, without
# an error, since an empty stream is as good as one with nothing new. It would wait until ids have overtaken that one, and
# never learn what was lost.
# Whom it hurts: whoever takes a stream for a log: revocations, orders, audit. It is the documented default: snapshots only, the
# first after an hour with a change, or after 60 s with 10,000.
# To do: `appendonly yes`, after which all 50 are there. And ask for the entry at your position, by XRANGE id id.
#
# Fails if any of that is otherwise. It needs Debian's redis-server.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill -9 "$(cat "$folder/pid")" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q redis==8.1.0
cat > "$folder/look.py" <<'PY'
import pathlib, subprocess, sys, time
import redis

folder = pathlib.Path(sys.argv[1])
path = str(folder / "redis.sock")


def start(*options):
    where = ["--port", "0", "--unixsocket", path, "--dir", str(folder), "--daemonize", "no", "--logfile", "", *options]
    server = subprocess.Popen(["redis-server", "/etc/redis/redis.conf", *where], stdout=subprocess.PIPE, text=True)
    (folder / "pid").write_text(str(server.pid))
    for line in server.stdout:
        if "eady to accept" in line:
            return server
    sys.exit("redis-server did not start")


def lost(*options):
    server = start(*options)
    client = redis.Redis(unix_socket_path=path)
    client.delete("log")
    ids = [client.xadd("log", {"number": number}) for number in range(50)]
    server.kill()
    server.wait()
    server = start(*options)
    left = client.xlen("log")
    answer = client.xread({"log": ids[-1]}, block=2000)
    here = client.xrange("log", ids[-1], ids[-1])
    print(f"{options or 'by default'}: {left} of 50 entries are left; XREAD after the last: {answer}; the last itself: {here}")
    server.kill()
    server.wait()
    return left, answer, here


left, answer, here = lost()
kept = lost("--appendonly", "yes")
sys.exit(not (left == 0 and not answer and not here and kept[0] == 50 and kept[2]))
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder"
