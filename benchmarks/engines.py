"""Real engines for tests and benchmarks: each in a folder of its own, on a Unix socket, ended by whoever started it."""

import pathlib
import shutil
import subprocess
from typing import Self


class RedisServer:
    """A redis-server: ``with RedisServer(folder) as server: RedisLog(server.url)``

    :param options: further options of its command line. By default it writes down what it acknowledges
    :ivar missing: why there is none on this machine, or ""
    """

    missing = "" if shutil.which("redis-server") else "no redis-server: apt-get install redis-server"

    def __init__(self, folder: pathlib.Path, *options: str) -> None:
        self.path = folder / "redis.sock"
        self.url = f"unix://{self.path}"
        where = ["--port", "0", "--unixsocket", str(self.path), "--dir", str(folder), "--save", ""]
        self._command = ["redis-server", *where, "--appendonly", "yes", *options]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        with self._process.stdout as said:
            lines = []
            for line in said:
                lines.append(line)
                if "eady to accept connections" in line:
                    return
        self.kill()
        raise RuntimeError("".join(lines))

    def kill(self) -> None:
        """End it, without a word to it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
