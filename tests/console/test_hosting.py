"""A console server that goes on: its configuration is reloaded, its shares come again, and each says who may do what."""

import contextlib
import grp
import math
import os
import pathlib
import pwd
import re
import stat
import sys
import tempfile
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest

from asyncrevoke.console import console
from asyncrevoke.console.server import host
from asyncrevoke.console.share import Config, Share, Socket, read_config
from asyncrevoke.control import Control, ControlError, connect
from conftest import settle
from ports import as_root, serial_line
from test_console import Attached, read_pipe
from test_port import settings_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """Where everybody may look."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        yield folder


def is_open(file: pathlib.Path) -> bool:
    """Whether this process has it open."""
    found = set()
    for entry in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists
            found.add(entry.readlink())
    return file in found


@contextlib.contextmanager
def user(name: str, *groups: str) -> Iterator[None]:
    """Be somebody else, to the kernel, for as long as it takes to connect."""
    before, gid = os.getgroups(), pwd.getpwnam(name).pw_gid
    os.setgroups([gid, *(grp.getgrnam(each).gr_gid for each in groups)])
    os.setegid(gid)
    os.seteuid(pwd.getpwnam(name).pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


class Lab:
    """A console server with a configuration, and those who connect."""

    def __init__(self, folder: pathlib.Path, tasks: anyio.abc.TaskGroup) -> None:
        self.file = folder / "lab.toml"
        self.socket = str(folder / "socket")
        self.hosting = anyio.CancelScope()
        self._tasks = tasks
        self._open = contextlib.AsyncExitStack()

    def says(self, text: str) -> None:
        self.file.write_text(text)

    def read(self) -> Config:
        config = read_config(str(self.file))
        return Config(config.shares, config.group, config.sockets or (Socket(self.socket),))

    async def start(self) -> None:
        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with self.hosting:
                config = self.read()
                await host(config.shares, config.sockets, group=config.group, reread=self.read, task_status=task_status)

        await self._tasks.start(run)

    async def connect(self, name: str = "", *groups: str, socket: str = "") -> Control:
        with user(name, *groups) if name else contextlib.nullcontext():
            return await self._open.enter_async_context(await connect(socket or self.socket))

    async def attach(self, share: str, *who: str, mode: str = "write", **fields: Any) -> Attached:
        attached = Attached(await self.connect(*who))
        self._tasks.start_soon(lambda: attached.listen(share, mode=mode, **fields))
        await attached.until(lambda: attached.told or attached.end)
        return attached

    async def asks(self, do: str, *who: str, **fields: Any) -> list[dict[str, Any]]:
        """What is answered; the last record has "ok"."""
        async with await self.connect(*who) as control:
            return [record async for record in control.request(do, **fields)]

    async def reload(self, text: str) -> dict[str, str]:
        self.says(text)
        done: dict[str, str] = (await self.asks("reload"))[-1]["done"]
        return done

    async def states(self, *who: str) -> dict[str, str]:
        return {each["share"]["name"]: each["share"]["state"] for each in (await self.asks("shares", *who))[:-1]}

    async def close(self) -> None:
        await self._open.aclose()
        self.hosting.cancel()


@contextlib.asynccontextmanager
async def lab(folder: pathlib.Path, text: str) -> AsyncIterator[Lab]:
    async with anyio.create_task_group() as tasks:
        opened = Lab(folder, tasks)
        opened.says(text)
        try:
            await opened.start()
            yield opened
        finally:
            await opened.close()


# -- who may do what --


RIGHTS = """
group = "daemon"
[share.free]
[share.hidden]
look = ["@sys", "games"]
type = ["@sys"]
[share.shown]
look = ["@daemon"]
type = []
revoke = ["man"]
"""


@as_root
@pytest.mark.parametrize(
    ("who", "looks", "types", "revokes"),
    [
        (("root",), "free hidden shown", "free hidden shown", "free hidden shown"),
        (("daemon",), "free shown", "free", ""),
        (("nobody", "daemon"), "free shown", "free", ""),
        (("nobody", "sys"), "hidden", "hidden", ""),
        (("games",), "hidden", "", ""),
        (("man",), "shown", "", "shown"),
        (("man", "daemon"), "free shown", "free", "shown"),
    ],
)
async def test_each_may_do_what_the_share_allows(
    folder: pathlib.Path, who: tuple[str, ...], looks: str, types: str, revokes: str
) -> None:
    """What he may not look at is in no list and no error; without the right to type he watches, and takes nothing by force."""
    async with lab(folder, RIGHTS) as server:
        names = ["free", "hidden", "shown"]
        assert list(await server.states(*who)) == looks.split()
        control = await server.connect(*who)
        assert [
            node["path"] for node in await control.list() if "/" not in node["path"] and node["kind"] == "name"
        ] == [*looks.split()]
        for name in names:
            attached = await server.attach(name, *who)
            if name not in looks.split():
                assert await attached.ends() == f"no share is named {name!r}. Shared: {', '.join(looks.split())}"
                continue
            await attached.is_told(yours=name in types.split())
            if name not in types.split():
                assert {"refused": "type", "message": "you may look here, and not type"} in attached.told
                forced = await server.attach(name, *who, mode="force")
                assert await forced.ends() == f"user {who[0]!r} lacks the right 'type' on {name!r}"
            await attached.control.aclose()
        for name in names:
            victim = await server.attach(name)
            if name in revokes.split():
                assert (await control.revoke(f"{name}/root", "enough"))["done"]
                assert await victim.ends() in (
                    "root was taken off by root: enough",
                    "root was taken off by man: enough",
                )
            else:
                with pytest.raises(ControlError, match=f"user {who[0]!r} lacks the right 'revoke' on '{name}/root'"):
                    await control.revoke(f"{name}/root")
                if name in looks.split() and name not in types.split():
                    with pytest.raises(ControlError, match=f"user {who[0]!r} lacks the right 'type' on {name!r}"):
                        await server.asks("give", *who, name=name, to="root")


@as_root
async def test_who_is_named_nowhere_may_not_connect(folder: pathlib.Path) -> None:
    """Where a share names people, the socket is open to all, and the server turns away whom no share knows."""
    async with lab(folder, RIGHTS) as server:
        assert stat.S_IMODE(pathlib.Path(server.socket).stat().st_mode) == 0o666
        with pytest.raises(ControlError, match="user 'nobody' may not connect here"):
            await server.states("nobody")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('look = ["no-such-user"]', "no user 'no-such-user'"),
        ('type = ["@no-such-group"]', "no group 'no-such-group'"),
        ('revoke = ["root", "no-such-user"]', "no user 'no-such-user'"),
    ],
)
async def test_name_that_nobody_has_is_an_error(folder: pathlib.Path, line: str, fault: str) -> None:
    """It is named when the file is loaded, not when somebody comes."""
    with pytest.raises(BaseExceptionGroup) as raised:
        async with lab(folder, f"[share.lab]\n{line}"):
            pass
    assert raised.group_contains(ValueError, match=fault)


@as_root
async def test_rights_change_while_people_are_there(folder: pathlib.Path) -> None:
    """Who may not look any more is taken off; who may not type watches; both are told; who still may notices nothing."""
    text = '[share.lab]\ncommand = ["cat"]\nlook = ["daemon", "man", "games"]\ntype = {}\n'
    async with lab(folder, text.format('["daemon", "man", "games"]')) as server:
        daemon, man, games = [await server.attach("lab", name) for name in ("daemon", "man", "games")]
        await games.is_told(keyboard="daemon")
        told = len(games.told)
        done = await server.reload('[share.lab]\ncommand = ["cat"]\nlook = ["daemon"]\ntype = ["games"]\n')
        assert done == {"lab": "look, type changed"}
        assert await man.ends() == "man was taken off: you may not look here"
        await daemon.is_told(yours=False, reason="you may look here, and not type")
        await games.is_told(keyboard="games", yours=True)
        assert (daemon.end, games.end, len(games.told)) == (None, None, told + 1)


@as_root
async def test_right_that_is_taken_away_stays_with_no_share_that_cannot_begin_anew(folder: pathlib.Path) -> None:
    """Who may not look any more sees it nowhere, and who may not take it away does not start it."""
    broken = folder / "broken"
    broken.write_text("#!/no/such/interpreter")
    broken.chmod(0o755)
    more = '[share.more]\nlook = ["daemon"]\n'
    async with lab(folder, more + '[share.lab]\nrevoke = ["daemon"]\n') as server:
        done = await server.reload(more + f'[share.lab]\ncommand = ["{broken}"]\n')
        assert "it cannot be started" in done["lab"]
        assert await server.states("daemon") == {"more": "live"}
        with pytest.raises(ControlError, match=r"no share is named 'lab'\. Shared: more"):
            await server.asks("start", "daemon", name="lab")


@as_root
async def test_right_is_taken_away_also_where_the_driver_refuses_the_settings(folder: pathlib.Path) -> None:
    """What else the configuration says of that share is not done, and is done when it is loaded again."""
    with serial_line() as line:
        text = f'[share.lab]\ndevice = "{line.path}"\nlook = ["daemon"]\n'
        async with lab(folder, text) as server:
            while await server.states() != {"lab": "live"}:
                await anyio.sleep(0.001)
            daemon = await server.attach("lab", "daemon", mode="watch")
            strict = text.replace("daemon", "man") + 'parity = "{}"\n'
            assert (await server.reload(strict.format("even")))["lab"].startswith("not changed: ")
            assert await daemon.ends() == "daemon was taken off: you may not look here"
            assert await server.reload(strict.format("none")) == {"lab": "look changed"}


# -- a configuration that changes --


async def test_reload_touches_nobody_whose_share_did_not_change(folder: pathlib.Path) -> None:
    """New ones begin; missing and changed ones are taken away with the reason, and the changed begun anew."""
    log = folder / "log"
    same = f'[share.same]\ncommand = ["cat"]\nlog = "{log}"\n'
    old = same + '[share.other]\ncommand = ["cat"]\n[share.gone]\n'
    async with lab(folder, old) as server:
        same_one, other, gone = [await server.attach(name) for name in ("same", "other", "gone")]
        await same_one.types(b"before\n")
        await same_one.hears(b"before\r\nbefore\r\n")
        told, inode = list(same_one.told), log.stat().st_ino
        assert await server.reload(old) == {}
        done = await server.reload(same + '[share.other]\ncommand = ["cat", "-"]\n[share.new]\n')
        assert done == {
            "other": "taken away: command changed in the configuration; started again",
            "gone": "taken away: the configuration no longer has it",
            "new": "started",
        }
        assert await other.ends() == "root was taken off: command changed in the configuration"
        assert await gone.ends() == "root was taken off: the configuration no longer has it"
        assert await server.states() == {"same": "live", "other": "live", "new": "live"}
        await same_one.types(b"after\n")
        await same_one.hears(b"after\r\nafter\r\n")
        assert (same_one.told, log.stat().st_ino) == (told, inode)
        late = await server.attach("same")
        await late.until(lambda: late.output == same_one.output)
        assert log.read_bytes() == same_one.output


async def test_log_and_history_change_while_people_are_there(folder: pathlib.Path) -> None:
    """They notice nothing; what comes next goes to the new log, and of what came before so much is kept as is asked now."""
    text = '[share.lab]\ncommand = ["sh", "-c", "stty raw -echo; echo; exec cat"]\nlog = "{}"\nhistory = {}\n'
    first, second = folder / "first", folder / "second"
    async with lab(folder, text.format(first, 100)) as server:
        client = await server.attach("lab")
        await client.hears(b"\n")
        await client.types(b"12345678")
        await client.hears(b"12345678")
        told = list(client.told)
        assert await server.reload(text.format(second, 4)) == {"lab": "log, history changed"}
        await client.types(b"9")
        await client.hears(b"9")
        late = await server.attach("lab")
        await late.hears(b"6789")
        assert late.output == b"6789"
        assert await server.reload(text.format("", 0)) == {"lab": "log, history changed"}
        later = await server.attach("lab", mode="watch")
        await client.types(b"x")
        await later.hears(b"x")
        assert later.output == b"x"
        assert (client.told, client.end) == (told, None)
    assert (first.read_bytes()[-9:], second.read_bytes()) == (b"\n12345678", b"9")


async def test_log_that_is_waited_for_can_be_changed(folder: pathlib.Path) -> None:
    """A full pipe takes what it was given before, and is closed then; what comes after that goes to the new log."""
    program = folder / "program"
    program.write_text("import os; os.system('stty -echo'); input(); print('x' * 80_000); os.execlp('cat', 'cat')")
    text = f'[share.lab]\ncommand = ["{sys.executable}", "-ISc", "exec(open(\'{program}\').read())"]\nlog = "{{}}"\n'
    with read_pipe(folder / "pipe") as reader:
        async with lab(folder, text.format(folder / "pipe")) as server:
            client = await server.attach("lab")
            await client.is_told(yours=True)
            await client.types(b"\n")
            await client.until(lambda: client.output.count(b"x") == 80_000)
            await settle(50)  # so that the log waits
            assert await server.reload(text.format(folder / "log")) == {"lab": "log changed"}
            logged = b""
            while data := os.read(reader, 1 << 16):
                logged += data
                await anyio.wait_readable(reader)
            await client.types(b"end\n")
            await client.hears(b"end")
            assert await server.states() == {"lab": "live"}
        assert logged + (folder / "log").read_bytes() == client.output


async def test_how_a_log_is_written_changes_while_people_are_there(folder: pathlib.Path) -> None:
    """From then on, on a line of its own; they notice nothing."""
    log = folder / "log"
    text = f'[share.lab]\ncommand = ["sh", "-c", "stty raw -echo; echo; exec cat"]\nlog = "{log}"\n'
    async with lab(folder, text) as server:
        client = await server.attach("lab")
        await client.hears(b"\n")
        await client.types(b"$ ")
        await client.hears(b"$ ")
        told = list(client.told)
        options = 'log_times = true\nlog_marks = true\nlog_size = "1M"\nlog_keep = 3\n'
        done = await server.reload(text + options)
        assert done == {"lab": "log_times, log_marks, log_size, log_keep changed"}
        await client.types(b"ls\n")
        await client.hears(b"ls\n")
        assert await server.reload(text) == done
        await client.types(b"$ ")
        await client.hears(b"$ ls\n$ ")
        assert (client.told, client.end) == (told, None)
    assert re.fullmatch(rb"\n\$ \n\S{25} ls\n\$ ", log.read_bytes())


async def test_settings_change_while_people_are_there(folder: pathlib.Path) -> None:
    """The line has them at once, and nobody notices; how lines are at open takes another start."""
    with serial_line() as line:
        text = f'[share.lab]\ndevice = "{line.path}"\n'
        async with lab(folder, text) as server:
            while await server.states() != {"lab": "live"}:
                await anyio.sleep(0.001)
            client = await server.attach("lab")
            await client.is_told(yours=True)
            told = list(client.told)
            assert await server.reload(text + "baudrate = 300\n") == {"lab": "settings changed"}
            assert settings_of(line)[5] == termios.B300
            (share,) = (await server.asks("shares"))[:-1]
            assert (share["share"]["settings"], client.told, client.end) == ("300n8", told, None)
            done = await server.reload(text + "baudrate = 300\ndtr = false\n")
            assert done == {"lab": "taken away: dtr changed in the configuration; started again"}


async def test_history_stays_changed_when_the_device_comes_back(folder: pathlib.Path) -> None:
    """The next generation keeps as much as the last was told to."""
    text = '[share.lab]\ndevice = "{}"\nhistory = {}\n'
    port = folder / "port"
    with serial_line() as first, serial_line() as second:
        port.symlink_to(first.path)
        async with lab(folder, text.format(port, 100)) as server:
            while await server.states() != {"lab": "live"}:
                await anyio.sleep(0.001)
            client = await server.attach("lab", wait=True)
            await client.is_told(yours=True)
            first.send(b"1")
            await client.hears(b"1")
            assert await server.reload(text.format(port, 2)) == {"lab": "history changed"}
            port.unlink()
            first.close()
            await client.until(lambda: {"away"} & client.told[-1].keys())
            port.symlink_to(second.path)
            await client.is_told(back=2)
            second.send(b"2345")
            await client.hears(b"2345")
            late = await server.attach("lab")
            await late.hears(b"45")
            assert late.output == b"45"


SOUND = '[share.lab]\ncommand = ["cat"]\n[share.more]\n'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[share", "lab.toml: "),
        ('[share.lab]\ncommand = ["/no/such/program"]', "/no/such/program: No such file"),
        (SOUND + '[share.new]\ncommand = ["{folder}/broken"]', "broken: No such file"),
        (SOUND + '[share.new]\n[share.worse]\ncommand = ["/no/such/program"]', "/no/such/program: No such file"),
        (SOUND + '[share.new]\n[share.worse]\ncommand = ["{folder}/broken"]', "broken: No such file"),
        (
            SOUND + '[share.new]\nlog = "{folder}/log"\n[share.worse]\ncommand = ["/no/such/program"]',
            "/no/such/program: No such file",
        ),
        (SOUND + '[share.new]\nlog = "/no/such/folder/log"', "/no/such/folder/log: No such file"),
        (SOUND + 'log = "/no/such/folder/log"', "/no/such/folder/log: No such file"),
        (SOUND + '[share.new]\ndevice = "x"\nbaudrate = -1', "baudrate"),
        (SOUND + 'restart = "sometimes"', "restart = 'sometimes': give one of never, on-failure, always"),
        (SOUND + '[share.new]\ndevice = "x"\nrestart = "always"', "'new' is a device, which comes back by itself"),
        (SOUND + 'look = ["no-such-user"]', "no user 'no-such-user'"),
        ('group = "no-such-group"\n' + SOUND, "no group 'no-such-group'"),
        (
            'sockets = [{{path = "{folder}/new"}}, {{path = "/no/such/folder/s"}}]\n' + SOUND,
            "no control socket can be made",
        ),
        ('sockets = [{{path = "{folder}/new"}}, {{path = "{folder}/new"}}]\n' + SOUND, "/new' is there twice"),
        ('sockets = [{{group = "daemon"}}]\n' + SOUND, "sockets: give each a path"),
        (
            '[share.a]\ndevice = "usb-x"\n[share.b]\ndevice = "usb-x"\n' + SOUND,
            "'usb-x' is the device of 'a' and 'b': share it once",
        ),
        ('sockets = ["{folder}/new"]\n' + SOUND, "sockets: give a table, and not '"),
        ('sockets = "path"\n' + SOUND, "sockets must be a list, and not 'path'"),
        ('sockets = [{{path = "{folder}/new", mode = 4294967296}}]\n' + SOUND, "a socket has no mode 0o40000000000"),
        ("x = " + "[" * 1000 + "]" * 1000, "lab.toml: "),
    ],
)
async def test_fault_in_the_configuration_changes_nothing(folder: pathlib.Path, text: str, fault: str) -> None:
    """It is named; nobody notices anything, what was begun is undone, and the next reload works."""
    broken = folder / "broken"
    broken.write_text("#!/no/such/interpreter")
    broken.chmod(0o755)
    async with lab(folder, SOUND) as server:
        clients = [await server.attach(name) for name in ("lab", "more")]
        for each in clients:
            await each.is_told(yours=True)
        told = [list(each.told) for each in clients]
        with pytest.raises(ControlError, match="nothing was changed: ") as refused:
            await server.reload(text.format(folder=folder))
        assert fault in str(refused.value)
        assert refused.value.code == "failed"
        assert await server.states() == {"lab": "live", "more": "live"}
        control = await server.connect()
        with anyio.fail_after(20):
            while {node["path"] for node in await control.list() if node["kind"] == "name"} != {"lab", "more"}:
                await anyio.sleep(0.001)  # what was begun goes
        await clients[0].types(b"still\n")
        await clients[0].hears(b"still")
        assert [each.told for each in clients] == told
        while (folder / "new").exists():
            await anyio.sleep(0.001)
        assert not is_open(folder / "log")
        assert await server.reload(SOUND) == {}
        assert await server.reload(SOUND + "[share.new]\n") == {"new": "started"}


#: What it gets and does is appended to a file. It stays after the hang-up, until it is told to go. One with an argument goes.
LINGERS = """
trap 'trap "" HUP; echo is hung up >>{0}/did; test $1 || read word <{0}/go; echo ends >>{0}/did; exit' HUP
echo begins >>{0}/did
while :; do sleep 60 & wait; done
"""


@contextlib.asynccontextmanager
async def lab_that_lingers(
    folder: pathlib.Path,
) -> AsyncIterator[tuple[Lab, Callable[[], object], list[dict[str, str]]]]:
    """A server that reloads: the share's program is hung up, and the new one must wait. The function lets the old one go."""
    program, did, pipe = (folder / name for name in ("program", "did", "go"))
    program.write_text(LINGERS.format(folder))
    os.mkfifo(pipe)
    text = f'[share.lab]\ncommand = ["sh", "{program}"{{}}]\n'
    done = list[dict[str, str]]()

    async def reload() -> None:
        done.append(await server.reload(text.format(', "again"')))

    with pipe.open("r+b", buffering=0) as go:  # which waits for nobody at the other end
        async with lab(folder, text.format("")) as server, anyio.create_task_group() as tasks:
            await until_did(did, "begins\n")
            tasks.start_soon(reload)
            await until_did(did, "begins\nis hung up\n")
            await settle(50)  # so that whoever does not wait goes on
            yield server, lambda: go.write(b"go\n"), done


async def until_did(did: pathlib.Path, what: str) -> None:
    with anyio.fail_after(20):
        while not did.exists() or did.read_text() != what:
            await anyio.sleep(0.001)


async def test_a_share_begins_anew_when_the_old_one_has_let_go(folder: pathlib.Path) -> None:
    """Both would have the device otherwise."""
    async with lab_that_lingers(folder) as (server, go, _):
        assert await server.states() == {"lab": "over"}
        go()
        await until_did(folder / "did", "begins\nis hung up\nends\nbegins\n")


async def test_one_reload_comes_after_the_other(folder: pathlib.Path) -> None:
    """What the last of them says is shared, although the first was still waiting."""
    async with lab_that_lingers(folder) as (server, go, done):
        second = list[dict[str, str]]()

        async def reload() -> None:
            second.append(await server.reload("[share.other]\n"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reload)
            await settle(50)
            assert (done, second) == ([], [])
            go()
        assert done == [{"lab": "taken away: command changed in the configuration; started again"}]
        assert second == [{"lab": "taken away: the configuration no longer has it", "other": "started"}]
        assert await server.states() == {"other": "live"}
        control = await server.connect()
        assert {node["path"] for node in await control.list() if node["kind"] == "name"} == {"other"}


async def test_share_that_cannot_begin_anew_is_over_and_says_why(folder: pathlib.Path) -> None:
    """What only its start shows is told in the answer; when it is mended, it can be started."""
    broken = folder / "broken"
    broken.write_text("#!/no/such/interpreter")
    broken.chmod(0o755)
    async with lab(folder, SOUND) as server:
        done = await server.reload(SOUND.replace('"cat"', f'"{broken}"'))
        assert done["lab"].startswith("taken away: command changed in the configuration; it cannot be started: ")
        assert await server.states() == {"lab": "over", "more": "live"}
        with pytest.raises(ControlError, match=r"'lab' cannot be started: .*broken: No such file"):
            await server.asks("start", name="lab")
        broken.write_text("#!/bin/sh\nexec cat")
        await server.asks("start", name="lab")
        assert await server.states() == {"lab": "live", "more": "live"}


@as_root
async def test_reload_is_for_the_owner(folder: pathlib.Path) -> None:
    """Whoever else may take a share away may not."""
    async with lab(folder, '[share.lab]\nrevoke = ["daemon"]') as server:
        with pytest.raises(ControlError, match="to reload, you must be root"):
            await server.asks("reload", "daemon")


async def test_server_without_a_file_cannot_reload(folder: pathlib.Path) -> None:
    """It says so."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: host([Share("lab")], str(folder / "s"), task_status=task_status))
        async with await connect(str(folder / "s")) as control:
            with pytest.raises(ControlError, match="has no configuration file"):
                async for _ in control.request("reload"):
                    pass
        tasks.cancel_scope.cancel()


# -- a share that is over --


async def test_share_comes_again_when_it_is_started(folder: pathlib.Path) -> None:
    """The server goes on meanwhile and tells why it is over; who may take it away may start it; nobody starts it twice."""
    async with lab(folder, '[share.lab]\ncommand = ["cat"]\nrevoke = ["daemon"]\nlook = ["man"]') as server:
        control = await server.connect()
        assert (await control.revoke("lab", "maintenance"))["done"]
        (over,) = (await server.asks("shares"))[:-1]
        assert (over["share"]["state"], over["share"]["reason"]) == ("over", "taken away by root: maintenance")
        assert await (await server.attach("lab")).ends() == "'lab' was revoked: maintenance"
        if os.geteuid() == 0:
            with pytest.raises(ControlError, match="user 'man' lacks the right 'revoke' on 'lab'"):
                await server.asks("start", "man", name="lab")
        await server.asks("start", *(["daemon"] if os.geteuid() == 0 else []), name="lab")
        client = await server.attach("lab")
        await client.types(b"again\n")
        await client.hears(b"again\r\nagain\r\n")
        with pytest.raises(ControlError, match="'lab' has not ended: it is shared"):
            await server.asks("start", name="lab")
        with pytest.raises(ControlError, match=r"no share is named 'nothing'\. Shared: lab"):
            await server.asks("start", name="nothing")


async def test_program_that_has_ended_can_be_started_again(folder: pathlib.Path) -> None:
    """It is over, with its status, until then; a reload leaves it over, unless its table has changed."""
    text = '[share.lab]\ncommand = ["sh", "-c", "read line; exit 3"]\n'
    async with lab(folder, text) as server:
        for again in ("start", "reload"):
            client = await server.attach("lab")
            await client.types(b"\n")
            assert await client.ends() == "the program has ended with status 3"
            while (await server.states()) != {"lab": "over"}:
                await anyio.sleep(0.001)
            (over,) = (await server.asks("shares"))[:-1]
            assert over["share"]["reason"] == "the program has ended with status 3"
            assert await server.reload(text) == {}
            assert await server.reload(text + "history = 1\n") == {"lab": "history changed"}
            assert await server.states() == {"lab": "over"}
            assert await server.reload(text) == {"lab": "history changed"}
            if again == "start":
                await server.asks("start", name="lab")
            else:
                done = await server.reload(text.replace("3", "4"))
                assert done["lab"].endswith("; started again")
            assert await server.states() == {"lab": "live"}


RESTARTING = '[share.lab]\nrestart = "{}"\ncommand = ["sh", "-c", "echo here; read status; exit $status"]\n'


async def test_program_is_started_again_when_the_share_says_so(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All stay attached, with the keyboard, and are told; the last output comes first. The log says how it ended."""
    monkeypatch.setattr(console, "_PAUSE", 0.0)
    caplog.set_level("INFO", "asyncrevoke")
    async with lab(folder, RESTARTING.format("always")) as server:
        client = await server.attach("lab")

        async def ends_with(status: bytes) -> None:
            seen = client.output.count(b"here")
            await client.types(status + b"\n")
            await client.until(lambda: client.end or client.output.count(b"here") > seen)

        await client.hears(b"here")
        await ends_with(b"0")
        await ends_with(b"3")
        assert [told for told in client.told if told.keys() & {"away", "back"}] == [
            {"away": "the program has ended with status 0"},
            {"back": 2},
            {"away": "the program has ended with status 3"},
            {"back": 3},
        ]
        assert "lab: the program has ended with status 3, and is started again" in caplog.text
        assert await server.states() == {"lab": "live"}
        assert await server.reload(RESTARTING.format("on-failure")) == {"lab": "restart changed"}
        await ends_with(b"3")
        await ends_with(b"0")
        assert await client.ends() == "the program has ended with status 0"
        assert client.told[-1] == {"back": 4}


async def test_program_that_ends_soon_each_time_is_started_later_each_time(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to the longest pause. All are told how it ended, and when it is back; once it has lasted, it is back soon."""
    monkeypatch.setattr(console, "_PAUSE", 0.001)
    monkeypatch.setattr(console, "_LONGEST_PAUSE", 0.004)
    monkeypatch.setattr(console, "_SOON", math.inf)
    caplog.set_level("INFO", "asyncrevoke")
    async with lab(folder, RESTARTING.format("always")) as server:
        client = await server.attach("lab")
        await client.hears(b"here")
        for status in range(1, 6):
            if status == 5:
                monkeypatch.setattr(console, "_SOON", -1.0)
            await client.types(b"%d\n" % status)
            await client.is_told(back=status + 1)
        ended = "the program has ended with status"
        assert [told["away"] for told in client.told if "away" in told] == [
            f"{ended} 1",
            f"{ended} 2, and is started again in 0.001 s",
            f"{ended} 3, and is started again in 0.003 s",
            f"{ended} 4, and is started again in 0.003 s",
            f"{ended} 5",
        ]
    assert [said for said in caplog.messages if ended in said] == [
        f"lab: {ended} {status}, and is started again in {pause} s"
        for status, pause in enumerate(("0.001", "0.002", "0.004", "0.004", "0.001"), 1)
    ]


async def test_program_that_is_taken_away_for_good_is_not_started_again(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it runs, nor in the pause."""
    async with lab(folder, RESTARTING.format("always")) as server:
        for pauses in False, True:
            monkeypatch.setattr(console, "_PAUSE", math.inf)
            client = await server.attach("lab")
            await client.hears(b"here")
            if pauses:
                await client.types(b"0\n")
                control = await server.connect()
                while not any(
                    user["where"].endswith("in _run_program")
                    for node in await control.list("lab", who=True)
                    for user in node["users"]
                ):
                    await anyio.sleep(0.001)
            assert (await (await server.connect()).revoke("lab", "enough"))["done"]
            assert await client.ends() == "root was taken off by root: enough"
            (over,) = (await server.asks("shares"))[:-1]
            assert (over["share"]["state"], over["share"]["reason"]) == ("over", "taken away by root: enough")
            await server.asks("start", name="lab")


async def test_program_that_cannot_be_started_again_is_over_and_says_why(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the server."""
    monkeypatch.setattr(console, "_PAUSE", 0.0)
    program = folder / "program"
    program.write_text("#!/bin/sh\nread line; rm $0")
    program.chmod(0o755)
    async with lab(folder, f'[share.lab]\nrestart = "always"\ncommand = ["{program}"]') as server:
        client = await server.attach("lab")
        await client.types(b"\n")
        assert (await client.ends()).startswith(
            f"the program has ended with status 0, and cannot be started again: {program}: "
        )


# -- several sockets --


@as_root
async def test_each_socket_has_its_group_and_mode(folder: pathlib.Path) -> None:
    """All lead to all that one may look at; a reload adds, changes and removes sockets, whose clients are told."""
    first, second, third = (str(folder / name) for name in ("first", "second", "third"))
    text = 'group = "daemon"\nsockets = [{}]\n[share.lab]\n'
    one, two = f'{{path = "{first}"}}', f'{{path = "{second}", group = "games", mode = 0o666}}'
    async with lab(folder, text.format(f"{one}, {two}")) as server:

        def files() -> dict[str, tuple[str, str]]:
            found = {each.name: each.stat() for each in folder.iterdir() if each.is_socket()}
            return {
                name: (oct(stat.S_IMODE(each.st_mode)), grp.getgrgid(each.st_gid).gr_name)
                for name, each in found.items()
            }

        server.socket = first
        assert files() == {"first": ("0o660", "daemon"), "second": ("0o666", "games")}
        clients = []
        for socket, name in (first, "daemon"), (second, "games"):
            control = await server.connect(name, socket=socket)
            assert [each["path"] for each in await control.list() if each["kind"] == "name"] == ["lab"]
            clients.append(control)
        changed = f'{{path = "{first}", mode = 0o600}}, {{path = "{third}", group = "man"}}'
        assert await server.reload(text.format(changed)) == {}
        while files() != {"first": ("0o600", "daemon"), "third": ("0o660", "man")}:
            await anyio.sleep(0.001)
        with pytest.raises(ControlError, match="the control server has ended"):
            await clients[1].list()
        assert await clients[0].list()
