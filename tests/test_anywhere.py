"""Other systems than Linux: what is nobody's but Linux's is hidden from a fresh interpreter, and the rest must work there.

The standard library and AnyIO are imported before, as they bring what they need on each system.
"""

import subprocess
import sys
import textwrap

import pytest

HIDE = """
import errno, functools, importlib, importlib.abc, os, select, selectors, signal, socket, sys, time
import asyncio, subprocess, tempfile, anyio, anyio.streams.stapled, anyio._backends._asyncio


def hide(home, *prefixes):
    for name in [name for name in vars(home) if name.startswith(prefixes)]:
        delattr(home, name)


class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


SYSTEM = sys.argv[1]
selectors.DefaultSelector = selectors.SelectSelector
hide(select, "epoll", "EPOLL")
hide(os, "O_PATH", "eventfd", "pidfd_open", "memfd_create")
hide(socket, "AF_NETLINK", "SO_PEERCRED")
hide(errno, "EBADFD", "EBADRQC", "ENOTUNIQ")
hide(time, "CLOCK_BOOTTIME")
modules = set()
if SYSTEM == "Windows":
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # that of Windows is made otherwise
    modules = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
    hide(select, "poll", "POLL")
    hide(os, "fork", "getuid", "geteuid", "getgid", "getegid", "openpty", "ttyname", "major", "minor", "makedev", "chown")
    hide(os, "O_CLOEXEC", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "killpg", "waitid", "register_at_fork", "set_blocking")
    hide(signal, "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGURG", "SIGUSR", "SIGWINCH")
    hide(socket, "AF_UNIX", "SCM_", "CMSG_", "MSG_DONTWAIT", "MSG_NOSIGNAL")
    hide(time, "clock_gettime", "CLOCK_")
for each in modules:
    sys.modules.pop(each, None)
sys.meta_path.insert(0, Hidden())
"""
on_each_system = pytest.mark.parametrize("system", ["Windows", "macOS"])


def said(system: str, program: str) -> list[str]:
    """The lines that a program prints where only that is there which the system has."""
    whole = f"{HIDE}\n{textwrap.dedent(program)}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", whole, system], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


@on_each_system
def test_the_protocol_works_anywhere(system: str) -> None:
    """Two users are kicked, each with the one error, the release runs once, and observers are told."""
    lines = said(
        system,
        """
        from asyncrevoke import Revokable, RevokedError, revoke_threadsafe

        async def use(handle):
            try:
                with handle.using():
                    await anyio.sleep_forever()
            except RevokedError as error:
                print(error, error.in_flight)

        async def main():
            port = Revokable("port", release=lambda: print("released"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use, port.open("alice"))
                tasks.start_soon(use, port.open("bob"))
                await anyio.wait_all_tasks_blocked()
                report = await port.revoke("unplugged")
            print(report.kicked, report.released)
            try:
                port.open("carol")
            except RevokedError as error:
                print(error, error.in_flight)
            other = Revokable("other")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use, other)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(revoke_threadsafe, other, "from a thread")

        anyio.run(main)
        """,
    )
    assert sorted(lines[:3]) == [
        "'port/alice' was revoked: unplugged True",
        "'port/bob' was revoked: unplugged True",
        "released",
    ]
    assert lines[3:] == ["2 3", "'port' was revoked: unplugged False", "'other' was revoked: from a thread True"]


@on_each_system
def test_streams_over_anyio_work_anywhere(system: str) -> None:
    """What was sent comes, and a receive that waits is ended by the revocation, on memory streams and on TCP."""
    assert said(
        system,
        """
        from asyncrevoke import Revokable, RevokableStream, RevokedError

        async def receive(stream):
            try:
                print(await stream.receive_until(b"!"))
                await stream.receive()
            except RevokedError as error:
                print(error)

        class Memory(anyio.streams.stapled.StapledObjectStream):
            async def receive(self, max_bytes=65536):
                return await super().receive()

        async def taken(name, near, send):
            owner = Revokable(name)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive, RevokableStream(near, owner, name="near"))
                await send(b"hello!")
                await anyio.wait_all_tasks_blocked()
                await owner.revoke("moved")

        async def main():
            there, here = anyio.create_memory_object_stream(1)
            await taken("memory", Memory(there, here), there.send)
            async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
                port = listener.extra(anyio.abc.SocketAttribute.local_port)
                async with await anyio.connect_tcp("127.0.0.1", port) as far, anyio.create_task_group() as tasks:
                    async def serve(near):
                        await taken("tcp", near, far.send)
                        tasks.cancel_scope.cancel()
                    await listener.serve(serve, tasks)

        anyio.run(main)
        """,
    ) == ["b'hello'", "'memory/near' was revoked: moved", "b'hello'", "'tcp/near' was revoked: moved"]


@on_each_system
def test_names_and_keys_work_anywhere(system: str) -> None:
    """Names have generations, keys are taken with what is below them; by a path it says what is missing."""
    assert said(
        system,
        """
        from asyncrevoke import Registry, RevokableStream

        async def main():
            live = Registry("live")
            gps = live.name("gps")
            handle = gps.open("alice")
            await live.revoke("gps", reason="unplugged")
            print(handle.revoked, live.find("gps") is gps, gps.open("bob").generation)
            session = live["alice", "token7"].open("request")
            await live["alice"].revoke("logged out")
            print(session.revoked, list(live))
            try:
                live.name("file", tempfile.gettempdir())
            except ImportError as error:
                print(error)

        anyio.run(main)
        """,
    ) == ["True True 2", "True []", "asyncrevoke._registry.registry needs Linux: there is no O_PATH here"]


@on_each_system
def test_web_sessions_work_anywhere(system: str) -> None:
    """An endpoint that waits is ended with its key, and the client is told; the members of a cluster have a clock."""
    assert said(
        system,
        """
        from asyncrevoke import Registry
        from asyncrevoke.adapters.asgi import RevokableApp, revoke_at_shutdown
        from asyncrevoke.cluster import Cluster
        from asyncrevoke.cluster.view import clock

        async def main():
            live, sent = Registry("live"), []
            begun = anyio.Event()

            async def app(scope, receive, send):
                begun.set()
                await anyio.sleep_forever()

            async def receive():
                await anyio.sleep_forever()

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"version": "3.0"}}
            guarded = RevokableApp(app, live, key=lambda scope: ("alice", "token7"))
            revoke_at_shutdown(live)()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guarded, scope, receive, send)
                await begun.wait()
                await live["alice"].revoke("logged out")
            print(sent[0]["status"], clock() > 0)

        asyncio.run(main())
        """,
    ) == ["401 True"]


@on_each_system
def test_every_part_can_be_imported_or_says_what_it_needs(system: str) -> None:
    """No part fails by a name that is not there: it is imported, or one ImportError says what needs what."""
    lines = said(
        system,
        """
        import pkgutil
        import asyncrevoke

        for each in pkgutil.walk_packages(asyncrevoke.__path__, "asyncrevoke.", onerror=lambda _: None):
            if each.name in ("asyncrevoke.__main__", "asyncrevoke.adapters.fuse", "asyncrevoke.compat.serialx"):
                continue  # which runs; which stand on libraries of one system
            try:
                importlib.import_module(each.name)
                print(each.name)
            except ImportError as error:
                print(each.name, "--", error)
        """,
    )
    refused = dict(line.split(" -- ") for line in lines if " -- " in line)
    assert all(" needs Linux: there is no " in why for why in refused.values()), refused
    needs = {name.removeprefix("asyncrevoke.") for name in refused}
    rooms = {"adapters.device", "adapters.hotplug", "adapters.lend", "adapters.pty", "adapters.serial", "control"}
    rooms |= {"adapters.asyncio_streams", "adapters.descriptor", "compat.serial_asyncio"}
    assert {each for each in needs if not each.startswith("console")} == rooms | (
        {"adapters.tty"} if system == "Windows" else set()
    )
    if system == "Windows":
        assert (
            refused["asyncrevoke.adapters.pty"]
            == "asyncrevoke.adapters.pty.session needs Linux: there is no fcntl here"
        )


@on_each_system
def test_what_is_linuxs_says_so_when_it_is_used(system: str) -> None:
    """A name of the package that cannot work says so when it is asked for, or called, by an ImportError."""
    lines = said(
        system,
        """
        import asyncrevoke

        async def main():
            near, far = socket.socketpair()
            with near, far:
                try:
                    asyncrevoke.Watch(near, print)
                except ImportError as error:
                    print(error)
            try:
                asyncrevoke.open_serial
            except ImportError as error:
                print(error)
            reads, writes = os.pipe()
            try:
                with open(writes, "wb"):
                    async with asyncrevoke.FdStream(reads) as stream:
                        os.write(writes, b"hello")
                        print(await stream.receive())
            except ImportError as error:
                os.close(reads)
                print(error)

        anyio.run(main)
        """,
    )
    assert lines[0] == "asyncrevoke._core.watch needs Linux: there is no epoll here"
    assert lines[1].startswith("asyncrevoke.adapters.device.")
    windows = "asyncrevoke._streams.fd needs Linux: there is no makedev here"
    assert lines[2] == (windows if system == "Windows" else "b'hello'")


def test_nothing_else_is_taken_for_a_part_of_linux() -> None:
    """`asyncrevoke.linux` hands on what it names, and has no other attribute."""
    from asyncrevoke import linux  # noqa: PLC0415

    with pytest.raises(AttributeError, match="no attribute 'inotify'"):
        linux.inotify  # type: ignore[attr-defined]  # noqa: B018
