"""Real engines for tests and benchmarks: each in a folder of its own, on a Unix socket, ended by whoever started it."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
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


class PostgresServer:
    """A PostgreSQL server: ``with PostgresServer() as server: PostgresLog(server.url)``. It loses nothing in a crash.

    :param options: lines of its configuration, such as "fsync = off"
    :ivar missing: why there is none on this machine, or ""
    """

    _bin = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), default=pathlib.Path())
    missing = "" if _bin.name else "no PostgreSQL: apt-get install postgresql"

    def __init__(self, *options: str) -> None:
        self._user = "postgres" if os.geteuid() == 0 else None  # root may not run it
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pg"))  # a short path: a socket is in it
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._data = self.folder / "data"
        self.url = f"postgresql://postgres@/postgres?host={self.folder}"
        self._run("initdb", "--username=postgres", "--auth=trust", "--no-sync", "--no-instructions", "-D", self._data)
        lines = [
            "listen_addresses = ''",
            f"unix_socket_directories = '{self.folder}'",
            "shared_buffers = 16MB",
            *options,
        ]
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines))

    def _run(self, program: str, *arguments: str | pathlib.Path) -> None:
        command = [self._bin / program, *arguments]
        done = subprocess.run(command, check=False, user=self._user, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run("pg_ctl", "start", "--wait", "--silent", "-D", self._data, "-l", self.folder / "log")

    @property
    def pids(self) -> list[int]:
        """Its processes, of which the first is the parent of the others."""
        parent = int((self._data / "postmaster.pid").read_text().split()[0])
        children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [parent, *map(int, children)]

    def kill(self) -> None:
        """End all its processes, without a word to them."""
        os.kill(self.pids[0], signal.SIGSTOP)  # it has no more children from here on
        pids = self.pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):  # it would not start before
            time.sleep(0.01)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(RuntimeError):  # it was killed, and did not start again
            self._run("pg_ctl", "stop", "--mode=immediate", "--silent", "-D", self._data)
        shutil.rmtree(self.folder)
