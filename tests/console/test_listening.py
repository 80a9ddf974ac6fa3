"""Shares over the network: raw TCP, telnet and TLS, by the clients that people have."""

import contextlib
import math
import os
import pathlib
import random
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncrevoke.console import network
from asyncrevoke.console.cli import main
from asyncrevoke.console.share import Share, read_config
from asyncrevoke.control import Control, ControlError
from ports import Plug, serial_line, terminal
from remote import Server, server
from test_cli import COMMAND, folder, sharing  # noqa: F401  # folder: a fixture
from test_console import ECHO, Attached, Lab, lab
from test_hosting import lab as hosting

pytestmark = pytest.mark.anyio

IAC, DONT, DO, WONT, WILL, SB, SE = (bytes([each]) for each in (255, 254, 253, 252, 251, 250, 240))
COM_PORT = b"\x2c"
#: What the server asks for and offers, where a device is shared.
OFFERS = b"".join(
    IAC + each for each in (WILL + b"\0", WILL + b"\1", WILL + b"\3", DO + b"\0", DO + b"\3", DO + b"\x1f")
)


#: What a program is told by RFC 2217: the number of a command, and what comes with it.
TOLD = re.compile(rb"\xff\xfa\x2c([^\xff]*)\xff\xf0")


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        return int(free.getsockname()[1])


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program} on this machine")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Those of a server, of alice, and of a stranger whom another authority knows."""
    home = tmp_path_factory.mktemp("certificates")
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine: no certificates can be made")
    (home / "config").write_text(
        "[req]\ndistinguished_name = name\n[name]\n[ca]\nbasicConstraints = critical, CA:TRUE\n"
        "subjectKeyIdentifier = hash\nkeyUsage = critical, keyCertSign\n[leaf]\nbasicConstraints = CA:FALSE\n"
        "authorityKeyIdentifier = keyid\nsubjectAltName = IP:127.0.0.1\n"
    )

    def make(name: str, by: str = "", section: str = "leaf") -> None:
        signed = ["-CA", f"{by}.pem", "-CAkey", f"{by}.pem"] if by else []
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -config config"
        words = [*command.split(), "-extensions", section, "-subj", f"/O=Lab/CN={name}", *signed]
        subprocess.run([*words, "-keyout", "key", "-out", "certificate"], cwd=home, check=True, capture_output=True)
        (home / f"{name}.pem").write_text((home / "certificate").read_text() + (home / "key").read_text())

    make("authority", section="ca")
    make("another", section="ca")
    make("server", "authority")
    make("alice", "authority")
    make("stranger", "another")
    return home


@contextlib.asynccontextmanager
async def running(command: list[str], **options: Any) -> AsyncIterator[anyio.abc.Process]:
    async with await anyio.open_process(command, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                process.kill()


class Tcp:
    """A client over the network: what it has got."""

    def __init__(self, stream: anyio.abc.ByteStream, name: str) -> None:
        self.stream = stream
        self.name = name
        self.output = b""

    async def hears(self, text: bytes) -> None:
        with anyio.fail_after(30):
            while text not in self.output:
                self.output += await self.stream.receive()

    async def ends(self) -> bytes:
        """All that comes until the server closes the connection."""
        with anyio.fail_after(30), contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                self.output += await self.stream.receive()
        return self.output


@contextlib.asynccontextmanager
async def connected(port: int, host: str = "127.0.0.1") -> AsyncIterator[Tcp]:
    async with await anyio.connect_tcp(host, port) as stream:
        own = stream.extra(anyio.abc.SocketAttribute.local_address)
        yield Tcp(stream, f"tcp:[{own[0]}]:{own[1]}" if ":" in host else f"tcp:{own[0]}:{own[1]}")


async def is_listed(admin: Control, name: str, *, there: bool = True) -> None:
    with anyio.fail_after(30):
        while there is not any(node["path"] == f"lab/{name}" for node in await admin.list()):
            await anyio.sleep(0)


async def has_keyboard(server: Lab, name: str | None) -> Attached:
    """Another client, which watches, and waits until that one has the keyboard."""
    watcher = await server.attach("watch")
    await watcher.is_told(keyboard=name)
    return watcher


async def test_bytes_go_both_ways_as_they_are(tmp_path: pathlib.Path) -> None:
    """Whatever bytes there are; what was shown before a client came is left out."""
    port = free_port()
    async with lab(tmp_path, Share("lab", ECHO, listen=(f"127.0.0.1:{port}",))) as server:
        first = await server.attach()
        await first.types(b"before")
        await first.hears(b"before")
        await first.control.send({"detach": True})
        await first.ends()
        async with connected(port) as client:
            await has_keyboard(server, client.name)
            await client.stream.send(bytes(range(256)) + b"end")
            await client.hears(b"end")
            assert client.output == bytes(range(256)) + b"end"


@needs("socat")
async def test_socat_types_and_reads(tmp_path: pathlib.Path) -> None:
    """It sends what it is given, and gets the answer."""
    port = free_port()
    program = ("sh", "-c", "stty -echo; read line; echo got $line; exec cat")
    async with (
        lab(tmp_path, Share("lab", program, listen=(f"tcp://127.0.0.1:{port}",))),
        running(["socat", "-", f"TCP:127.0.0.1:{port}"]) as socat,
    ):
        assert socat.stdin
        assert socat.stdout
        await socat.stdin.send(b"hello\n")
        out = b""
        while b"got hello" not in out:
            out += await socat.stdout.receive()


async def test_network_clients_share_the_keyboard_with_all_others(tmp_path: pathlib.Path) -> None:
    """It comes to who is there first, then to the next; without it, what is typed is thrown away. With `take` it is taken,
    with `read-only` it never comes.
    """
    ports = [free_port() for _ in range(3)]
    urls = tuple(f"tcp://127.0.0.1:{port}{how}" for port, how in zip(ports, ("", "?take", "?read-only"), strict=True))
    async with lab(tmp_path, Share("lab", ECHO, listen=urls)) as server:
        local = await server.attach()
        async with connected(ports[0]) as waits, connected(ports[2]) as reads:
            admin = await server.connect()
            await is_listed(admin, waits.name)
            await is_listed(admin, reads.name)
            await waits.stream.send(b"in vain")
            await reads.stream.send(b"in vain")
            async with connected(ports[1]) as takes:
                await local.is_told(keyboard=takes.name, yours=False)
                await takes.stream.send(b"taken")
                for each in waits, reads, takes:
                    await each.hears(b"taken")
            await local.is_told(keyboard="root", yours=True)
            await local.control.send({"detach": True})
            await local.ends()
            watcher = await has_keyboard(server, waits.name)
            await waits.stream.send(b"mine")
            await reads.hears(b"mine")
            assert reads.output == waits.output + b"mine" == b"takenmine"
            await waits.stream.aclose()
            await watcher.is_told(keyboard=None)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_who_is_taken_off_is_disconnected(tmp_path: pathlib.Path, host: str) -> None:
    """By the name that is listed; the others notice nothing."""
    port = free_port(host)
    url = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    async with lab(tmp_path, Share("lab", ECHO, listen=(url,))) as server:
        admin = await server.connect()
        async with connected(port, host) as alice, connected(port, host) as bob:
            await is_listed(admin, alice.name)
            await is_listed(admin, bob.name)
            assert (await admin.revoke(f"lab/{alice.name}", "her slot is over"))["done"]
            assert await alice.ends() == b""
            await has_keyboard(server, bob.name)
            await bob.stream.send(b"still here")
            await bob.hears(b"still here")


@contextlib.contextmanager
def deaf(port: int) -> Iterator[tuple[socket.socket, str]]:
    """A client that reads nothing, and its name."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        yield connection, f"tcp:127.0.0.1:{connection.getsockname()[1]}"


async def is_stuck(admin: Control, name: str) -> bool:
    """Whether something waits to be sent to that client."""
    nodes = [node for node in await admin.list(who=True) if node["path"].endswith(f"/{name}")]
    return any("in send" in user["where"] for node in nodes for user in node["users"])


def all_of(connection: socket.socket) -> int:
    """How many bytes come until the end."""
    connection.settimeout(30)
    got = 0
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            got += len(data)
    return got


@pytest.mark.parametrize("protocol", ["tcp", "telnet"])
async def test_client_that_stalls_slows_nobody(tmp_path: pathlib.Path, protocol: str) -> None:
    """Of a device that sends on and on, one who reads nothing is a bounded number of bytes behind, then off; the others
    get all of it.
    """
    port, total = free_port(), 1_500_000
    with serial_line() as end:
        share = Share("lab", device=end.path, listen=(f"{protocol}://127.0.0.1:{port}",), history=0)
        async with lab(tmp_path, share) as server, connected(port) as reader:
            admin = await server.connect()
            while not any(
                node["path"].endswith(f"/{reader.name}") and node["generation"] for node in await admin.list()
            ):
                await anyio.sleep(0)
            with deaf(port) as (slow, name):
                await is_listed(admin, name)
                sent = got = 0
                while got < total:
                    if sent < total and sent - got < 32768:
                        with contextlib.suppress(BlockingIOError):
                            sent += os.write(end._master, b"x" * min(2048, total - sent))
                    got += (await reader.stream.receive()).count(b"x") if sent > got else 0
                await is_listed(admin, name, there=False)
                assert await anyio.to_thread.run_sync(all_of, slow) < 600_000


@pytest.mark.parametrize("protocol", ["tcp", "telnet"])
async def test_stalled_client_is_taken_off_at_once(tmp_path: pathlib.Path, protocol: str) -> None:
    """One who reads nothing, of a program that waits for it, is gone when the revocation is reported: the rest goes on."""
    port = free_port()
    program = (sys.executable, "-ISc", "import os\nwhile True: os.write(1, b'x' * 4096)")
    async with lab(tmp_path, Share("lab", program, listen=(f"{protocol}://127.0.0.1:{port}",), history=0)) as server:
        admin = await server.connect()
        with deaf(port) as (slow, name):
            with anyio.fail_after(30):
                while not await is_stuck(admin, name):
                    await anyio.sleep(0)
            with anyio.fail_after(5):
                assert (await admin.revoke(f"lab/{name}", "enough"))["done"]
            reader = await server.attach("watch")
            await reader.hears(b"xxxx")
            await anyio.to_thread.run_sync(all_of, slow)


async def test_stalled_client_is_off_when_a_part_of_what_it_was_sent_is_lost(tmp_path: pathlib.Path) -> None:
    """When the device goes, what it still waits for is lost, perhaps within a command: nothing may follow on that."""
    port = free_port()
    plug = Plug(tmp_path / "port")
    end = plug.plug_in()
    share = Share("lab", device=str(plug.link), listen=(f"telnet://127.0.0.1:{port}",), history=0)
    try:
        async with lab(tmp_path, share) as opened:
            admin, watcher = await opened.connect(), await opened.attach("watch", wait=True)
            with deaf(port) as (slow, name):
                stuck = 0
                with anyio.fail_after(30):
                    while stuck < 100:  # else the kernel has only paused
                        stuck = stuck + 1 if await is_stuck(admin, name) else 0
                        with contextlib.suppress(BlockingIOError):
                            os.write(end._master, (IAC + b"x") * (0 if stuck else 500))
                plug.unplug()
                await watcher.until(lambda: "unplugged" in str(watcher.told[-1].get("away")))
                end = plug.plug_in()
                await watcher.until(lambda: "back" in watcher.told[-1])
                end.send(b"again")
                await watcher.hears(b"again")
                await anyio.to_thread.run_sync(all_of, slow)
    finally:
        plug.close()


async def test_end_of_what_is_typed_detaches_after_it(tmp_path: pathlib.Path) -> None:
    """A client that closes its half of the connection has typed all before; then it is gone."""
    port = free_port()
    async with (
        lab(tmp_path, Share("lab", ECHO, listen=(f"tcp://127.0.0.1:{port}",))) as server,
        connected(port) as client,
    ):
        watcher = await has_keyboard(server, client.name)
        await client.stream.send(b"x" * 3000 + b"end")
        await client.stream.send_eof()
        await watcher.hears(b"end")
        await client.ends()
        await is_listed(await server.connect(), client.name, there=False)


async def test_number_of_clients_is_limited(tmp_path: pathlib.Path) -> None:
    """Who is one too many is disconnected, and may come when another has gone."""
    port = free_port()
    async with lab(tmp_path, Share("lab", ECHO, listen=(f"tcp://127.0.0.1:{port}?limit=2",))) as server:
        admin = await server.connect()
        async with connected(port) as one, connected(port) as two:
            await is_listed(admin, one.name)
            await is_listed(admin, two.name)
            async with connected(port) as three:
                assert await three.ends() == b""
        await is_listed(admin, two.name, there=False)
        async with connected(port) as four:
            await is_listed(admin, four.name)


@pytest.mark.parametrize("protocol", ["tcp", "telnet", "telnet+tls"])
async def test_a_thousand_connections_in_a_row_leave_nothing(
    tmp_path: pathlib.Path, protocol: str, certificates: pathlib.Path
) -> None:
    """However they end, in order or by a reset; who is attached notices nothing."""
    port = free_port()
    certificate = str(certificates / "server.pem") if "tls" in protocol else ""
    share = Share("lab", ECHO, listen=(f"{protocol}://127.0.0.1:{port}",), tls_certificate=certificate)
    async with lab(tmp_path, share) as server:
        user = await server.attach()
        for number in range(1000):
            connection = socket.create_connection(("127.0.0.1", port))
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.send(b"\xff\xff")
            connection.close()
            if number % 100 == 0:
                await user.types(b"%d." % number)
                await user.hears(b"%d." % number)
        admin = await server.connect()
        with anyio.fail_after(60):
            while any("tcp:" in node["path"] for node in await admin.list()):
                await anyio.sleep(0.01)


# -- where it listens --


async def test_address_that_is_taken_is_named(tmp_path: pathlib.Path) -> None:
    """The server does not begin, says which share and which address it is, and leaves nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        free = free_port()
        share = Share("lab", ECHO, listen=(f"tcp://127.0.0.1:{free}", f"telnet://127.0.0.1:{number}"))
        with pytest.raises(BaseExceptionGroup) as caught:
            async with lab(tmp_path, share):
                raise AssertionError
        error = caught.value
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert f"Address already in use: 'lab' cannot listen on telnet://127.0.0.1:{number}" in str(error)
    socket.create_server(("127.0.0.1", free)).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1"])
@pytest.mark.parametrize(("scheme", "files"), [("tcp", {}), ("telnet+tls", {"tls_certificate": "lab.pem"})])
async def test_other_machines_are_let_in_only_if_the_file_says_so(
    scheme: str, files: dict[str, str], host: str
) -> None:
    """Without that, a share has no address that is reached from elsewhere, whoever must have a certificate."""
    listen = (f"{scheme}://{host}:4001",)
    with pytest.raises(ValueError, match="listen_anywhere"):
        Share("lab", listen=listen, **files)  # type: ignore[arg-type]
    assert Share("lab", listen=listen, listen_anywhere=True, **files).addresses[0].port == 4001  # type: ignore[arg-type]


def test_addresses_are_read_from_a_file(tmp_path: pathlib.Path) -> None:
    """One or several; what makes no sense is named with the file and the share."""
    file = tmp_path / "lab.toml"
    file.write_text(
        '[share.a]\nlisten = "[::1]:1"\n[share.b]\nlisten = ["tcp://127.0.0.1:1", "telnet://localhost:2"]\n'
    )
    assert [list(map(str, each.addresses)) for each in read_config(str(file)).shares] == [
        ["tcp://[::1]:1"],
        ["tcp://127.0.0.1:1", "telnet://127.0.0.1:2"],
    ]
    for line, says in (
        ('listen = "4001"', "'4001' is no address: give telnet://127.0.0.1:4001"),
        ('listen = "ser2net://127.0.0.1:1"', "is no address"),
        ('listen = "tcp://127.0.0.1:65536"', "is no address"),
        ('listen = "lab:1"', "'lab' does not appear to be an IPv4 or IPv6 address"),
        ('listen = "127.0.0.1:1?read-only&take"', "'take' is none of read-only, take (one of them) and limit=NUMBER"),
        ('listen = "127.0.0.1:1?limit=0"', "'limit=0' is none of"),
        ("listen = 1", "listen must be a list, and not 1"),
        ('listen = "0.0.0.0:1"', "'a': tcp://0.0.0.0:1 is open to other machines. Set listen_anywhere"),
        ('listen = "tcp+tls://127.0.0.1:1"', "'a': tcp+tls://127.0.0.1:1 needs a tls_certificate"),
        ('listen = "127.0.0.1:1"\ntls_clients = "people.pem"', "'a' has files for TLS, and no address"),
    ):
        file.write_text(f"[share.a]\n{line}\n")
        with pytest.raises(ValueError, match=r"lab\.toml: ") as caught:
            read_config(str(file))
        assert says in str(caught.value)


async def test_reload_moves_an_address_and_finds_faults_before_it_changes_anything(
    tmp_path: pathlib.Path, certificates: pathlib.Path
) -> None:
    """Who is attached to a share that did not change stays; the address of another is closed, and the new one is open."""
    one, two, three = free_port(), free_port(), free_port()
    same = f'[share.lab]\ncommand = ["cat"]\nlisten = "127.0.0.1:{one}"\n'
    async with (
        hosting(tmp_path, f'{same}[share.other]\nlisten = "127.0.0.1:{two}"\n') as server,
        connected(one) as client,
    ):
        for _ in range(2):
            with pytest.raises(ControlError, match=f"'new' cannot listen on tcp://127.0.0.1:{one}"):
                await server.reload(f'{same}[share.new]\nlisten = "127.0.0.1:{one}"\n')
        with pytest.raises(ControlError, match="'other': no certificate and key of TLS"):
            await server.reload(
                f'{same}[share.other]\nlisten = "tcp+tls://127.0.0.1:{three}"\n'
                f'tls_certificate = "{certificates / "config"}"\n'
            )
        async with connected(two):
            await server.reload(f'{same}[share.other]\nlisten = "127.0.0.1:{three}"\n')
        async with connected(three):
            with pytest.raises(OSError):
                await anyio.connect_tcp("127.0.0.1", two)
        await client.stream.send(b"still here\n")
        await client.hears(b"still here")


async def test_who_comes_when_too_many_files_are_open_is_let_in_later(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server says so, and goes on; who was attached before notices nothing."""
    port = free_port()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with lab(tmp_path, Share("lab", ECHO, listen=(f"127.0.0.1:{port}",))) as server, connected(port) as first:
        watcher = await has_keyboard(server, first.name)
        caplog.clear()
        with socket.socket() as client:
            free = os.dup(client.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
            try:
                client.connect(("127.0.0.1", port))
                with anyio.fail_after(30):
                    while f"'lab', tcp://127.0.0.1:{port}: [Errno 24] Too many open files" not in caplog.messages:
                        await anyio.sleep(0)
                await first.stream.send(b"still here")
                await watcher.hears(b"still here")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await is_listed(await server.connect(), f"tcp:127.0.0.1:{client.getsockname()[1]}")


@pytest.mark.usefixtures("folder")
def test_command_line_listens_and_warns(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its options say; `ls` says who can reach it from elsewhere; an address that is taken is named."""
    port, file = free_port(), tmp_path / "again"
    options = [
        "--listen",
        f"tcp://0.0.0.0:{port}",
        "--listen",
        f"telnet://127.0.0.1:{free_port()}",
        "--listen-anywhere",
    ]
    with sharing("--name", "lab", *options):
        socket.create_connection(("127.0.0.1", port)).close()
        assert main(["ls"]) == 0
        says = f"'lab' is open to the network on tcp://0.0.0.0:{port}: everybody who can reach this machine can type"
        assert f"asyncrevoke: {says}\n" in capsys.readouterr().err
        again = ["share", "--name", "again", "--socket", str(file), *options]
        done = subprocess.run([*COMMAND, *again], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert f"Address already in use: 'again' cannot listen on tcp://0.0.0.0:{port}" in done.stderr


async def test_listening_to_other_machines_is_warned_of(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says at the start who can do what there."""
    port = free_port()
    share = Share("lab", ECHO, listen=(f"tcp://0.0.0.0:{port}?read-only",), listen_anywhere=True)
    async with lab(tmp_path, share):
        pass
    assert f"'lab' is open to the network on tcp://0.0.0.0:{port}: everybody who can reach this machine can read" in [
        record.getMessage() for record in caplog.records if record.levelname == "WARNING"
    ]


# -- TLS --


@contextlib.asynccontextmanager
async def secured(port: int, certificates: pathlib.Path, own: str = "") -> AsyncIterator[Tcp]:
    context = ssl.create_default_context(cafile=str(certificates / "authority.pem"))
    if own:
        context.load_cert_chain(certificates / f"{own}.pem")
    async with await anyio.connect_tcp("127.0.0.1", port, ssl_context=context, tls_standard_compatible=False) as stream:
        yield Tcp(stream, own)


def over_tls(port: int, certificates: pathlib.Path, *, clients: bool = True, how: str = "") -> Share:
    return Share(
        "lab",
        ECHO,
        listen=(f"tcp+tls://127.0.0.1:{port}{how}",),
        tls_certificate=str(certificates / "server.pem"),
        tls_clients=str(certificates / "authority.pem") if clients else "",
    )


async def test_certificate_says_who_it_is(tmp_path: pathlib.Path, certificates: pathlib.Path) -> None:
    """The name in it is the client's; whatever bytes there are go both ways; taken off, the client gets the end in order."""
    port = free_port()
    async with lab(tmp_path, over_tls(port, certificates)) as server, secured(port, certificates, "alice") as alice:
        watcher = await has_keyboard(server, "alice")
        data = bytes(range(256)) * 400 + b"end"
        await alice.stream.send(data)
        await alice.hears(b"end")
        assert alice.output == data
        await watcher.hears(b"end")
        assert (await (await server.connect()).revoke("lab/alice"))["done"]
        assert await alice.ends() == data


@pytest.mark.parametrize("own", ["", "stranger"])
async def test_without_a_certificate_of_the_authority_nobody_comes_in(
    tmp_path: pathlib.Path, certificates: pathlib.Path, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    """None, or another authority's: the connection ends, nothing was shown or typed, and the log says why."""
    caplog.set_level("INFO", "asyncrevoke")
    port = free_port()
    async with lab(tmp_path, over_tls(port, certificates)) as server:
        user = await server.attach()
        with contextlib.suppress(ssl.SSLError, anyio.BrokenResourceError):
            async with secured(port, certificates, own) as client:
                await client.stream.send(b"typed")
                assert await client.ends() == b""
        await user.types(b"mine")
        await user.hears(b"mine")
        with anyio.fail_after(30):
            while "was turned away: [SSL: " not in caplog.text:
                await anyio.sleep(0)
        assert user.output == b"mine"


async def test_handshake_that_does_not_end_is_given_up(
    tmp_path: pathlib.Path, certificates: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who says nothing, a byte now and then, or no TLS at all, is disconnected, and holds up nobody."""
    monkeypatch.setattr(network, "_HANDSHAKE", 0.5)
    port = free_port()
    async with (
        lab(tmp_path, over_tls(port, certificates, clients=False)) as server,
        connected(port) as silent,
        connected(port) as slow,
        connected(port) as other,
    ):
        await slow.stream.send(b"\x16")
        await other.stream.send(b"GET / HTTP/1.0\r\n\r\n")
        async with secured(port, certificates) as client:
            assert client.name == ""
            await client.stream.send(b"hello")
            await client.hears(b"hello")
        for each in silent, slow, other:
            await each.ends()
        assert server


async def test_who_says_nothing_keeps_nobody_out(
    tmp_path: pathlib.Path, certificates: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many have not even begun their handshake, as many as may be inside come in; of the silent the oldest go."""
    monkeypatch.setattr(network, "_HANDSHAKE", math.inf)
    port = free_port()
    share = over_tls(port, certificates, clients=False, how="?limit=2")
    async with lab(tmp_path, share) as server, contextlib.AsyncExitStack() as silent:
        first = [await silent.enter_async_context(connected(port)) for _ in range(5)]
        async with secured(port, certificates) as one, secured(port, certificates) as two:
            admin = await server.connect()
            with anyio.fail_after(30):
                while (
                    sum(node["path"].count("/tcp:") and node["generation"] is None for node in await admin.list()) < 3
                ):
                    await anyio.sleep(0)  # two, and the keyboard of one
            for each in first[:3]:
                await each.ends()
            async with secured(port, certificates) as three:
                assert await three.ends() == b""
            await one.stream.send(b"hello")
            await two.hears(b"hello")


@needs("openssl")
async def test_openssl_types_and_reads(tmp_path: pathlib.Path, certificates: pathlib.Path) -> None:
    """s_client with a certificate."""
    port = free_port()
    async with lab(tmp_path, over_tls(port, certificates)) as server:
        words = (
            f"openssl s_client -quiet -connect 127.0.0.1:{port} -CAfile authority.pem -cert alice.pem -key alice.pem"
        )
        async with running(words.split(), cwd=certificates) as client:
            assert client.stdin
            assert client.stdout
            await has_keyboard(server, "alice")
            await client.stdin.send(b"hello\n")
            out = b""
            while b"hello" not in out:
                out += await client.stdout.receive()


@pytest.mark.parametrize("missing", ["certificate", "key", "clients"])
async def test_files_of_tls_that_are_wrong_are_named(
    tmp_path: pathlib.Path, certificates: pathlib.Path, missing: str
) -> None:
    """The server does not begin, and says of which share."""
    files: dict[str, Any] = {"tls_certificate": str(certificates / "server.pem")}
    files[f"tls_{missing}"] = str(certificates / "config")
    share = Share("lab", ECHO, listen=(f"tcp+tls://127.0.0.1:{free_port()}",), **files)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with lab(tmp_path, share):
            raise AssertionError
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert "'lab': no certificate and key of TLS in" in str(error)
    assert "config" in str(error)


# -- telnet --


class Telnet:
    """A program of telnet, on a terminal."""

    def __init__(self, master: int) -> None:
        self.master = master
        self.output = b""

    async def types(self, data: bytes) -> None:
        os.write(self.master, data)

    async def shows(self, text: bytes) -> None:
        with anyio.move_on_after(30):
            while text not in self.output:
                await anyio.wait_readable(self.master)
                self.output += os.read(self.master, 65536)
        assert text in self.output


@contextlib.asynccontextmanager
async def telnet(port: int) -> AsyncIterator[Telnet]:
    with terminal() as (master, slave):
        command = ["telnet", "127.0.0.1", str(port)]
        async with running(command, stdin=slave, stdout=slave, stderr=slave):
            client = Telnet(master)
            await client.shows(b"Escape character is '^]'.")
            yield client


@needs("telnet")
async def test_a_person_by_telnet_types_at_a_terminal(tmp_path: pathlib.Path) -> None:
    """Key by key, not echoed twice, the return key as one byte; told in words who has the keyboard, and why it ends."""
    port = free_port()
    async with lab(tmp_path, Share("lab", ECHO, listen=(f"telnet://127.0.0.1:{port}",))) as server:
        user = await server.attach()
        async with telnet(port) as person:
            await person.types(b"in vain")
            await person.shows(b"[asyncrevoke: root has the keyboard: what you type is thrown away]\r\n")
            await user.control.send({"detach": True})
            await person.shows(b"[asyncrevoke: you have the keyboard]\r\n")
            watcher = await server.attach("watch")
            await person.types(b"ls\rexit\xff.")
            await watcher.hears(b".")
            assert watcher.output == b"ls\rexit\xff."
            await person.shows(b"]\r\nls\rexit\xff.")
            admin = await server.connect()
            (path,) = [
                node["path"]
                for node in await admin.list()
                if node["path"].startswith("lab/tcp:") and not node["path"].endswith("keyboard")
            ]
            await admin.revoke(path, "her slot is over")
            await person.shows(b"was taken off by root: her slot is over]\r\n")
            await person.shows(b"Connection closed by foreign host.")


async def test_window_of_a_telnet_client_is_the_terminals(tmp_path: pathlib.Path) -> None:
    """Its rows and columns, also one of 255 columns, which are doubled on the way; a window of none changes nothing."""
    port = free_port()
    program = ("sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do read line; stty size; done")
    share = Share("lab", program, listen=(f"telnet://127.0.0.1:{port}",))
    async with lab(tmp_path, share) as opened, connected(port) as client:
        await (await opened.attach("watch")).hears(b"ready")
        await client.stream.send(IAC + WILL + b"\x1f" + IAC + SB + b"\x1f\0\0\0\0" + IAC + SE)
        for columns, rows in ((132, 50), (255, 51)):
            sizes = bytes([0, columns, 0, rows]).replace(IAC, IAC + IAC)
            await client.stream.send(IAC + SB + b"\x1f" + sizes + IAC + SE)
            await client.hears(b"%d %d" % (rows, columns))


async def test_telnet_commands_act(tmp_path: pathlib.Path) -> None:
    """Interrupt process passes what is stuck; are you there is answered; options that are unknown are refused, each once."""
    port = free_port()
    program = ("sh", "-c", "stty raw isig -echo; echo ready; exec sleep 1000")
    share = Share("lab", program, listen=(f"telnet://127.0.0.1:{port}",))
    async with lab(tmp_path, share) as opened, connected(port) as client:
        await (await opened.attach("watch")).hears(b"ready")
        await client.hears(OFFERS)
        await client.stream.send(
            IAC + DO + b"\x63" + IAC + WILL + b"\x63" + IAC + WONT + b"\x63" + IAC + DONT + b"\x63"
        )
        await client.hears(IAC + WONT + b"\x63" + IAC + DONT + b"\x63")
        # What was asked for is agreed to: no answer. Taken back, and offered again: one each.
        await client.stream.send(IAC + DO + b"\1" + IAC + DONT + b"\1" + IAC + DONT + b"\1" + IAC + DO + b"\1")
        await client.stream.send(IAC + b"\xf6")
        await client.hears(
            IAC + DONT + b"\x63" + IAC + WONT + b"\1" + IAC + WILL + b"\1" + b"\r\n[asyncrevoke: yes]\r\n"
        )
        await client.stream.send(b"x" * 20000 + IAC + b"\xf4")
        await client.hears(b"the program has ended with status -2")
        assert IAC not in (await client.ends()).rpartition(b"yes")[2]


async def test_who_types_on_and_on_is_told_why_it_ends(tmp_path: pathlib.Path) -> None:
    """The connection ends in order, though more had come than could be typed: the last words are not lost to a reset."""
    port = free_port()
    program = ("sh", "-c", "stty raw -echo; echo ready; exec sleep 1000")
    share = Share("lab", program, listen=(f"telnet://127.0.0.1:{port}",))
    async with lab(tmp_path, share) as opened, connected(port) as client, anyio.create_task_group() as tasks:
        await (await opened.attach("watch")).hears(b"ready")
        tasks.start_soon(client.stream.send, b"x" * 3_000_000)
        admin = await opened.connect()
        while f"lab/{client.name}/keyboard" not in {node["path"] for node in await admin.list() if node["in_use"]}:
            await anyio.sleep(0)
        await admin.revoke(f"lab/{client.name}", "enough")
        with anyio.fail_after(30), pytest.raises(anyio.EndOfStream):
            while True:
                client.output += await client.stream.receive()
        assert b"was taken off by root: enough]" in client.output


async def test_commands_are_understood_however_they_are_cut(tmp_path: pathlib.Path) -> None:
    """Byte by byte they are the same: a doubled IAC is data, a return is one byte, commands are not typed."""
    port = free_port()
    async with (
        lab(tmp_path, Share("lab", ECHO, listen=(f"telnet://127.0.0.1:{port}",))) as server,
        connected(port) as client,
    ):
        watcher = await has_keyboard(server, client.name)
        sent = (
            b"a\r\0b\r\nc\rd"
            + IAC
            + IAC
            + IAC
            + b"\xf1"
            + IAC
            + SB
            + b"\x18\0vt"
            + IAC
            + IAC
            + b"100"
            + IAC
            + SE
            + b"."
        )
        for each in sent:
            await client.stream.send(bytes([each]))
        await watcher.hears(b".")
        await client.stream.send(sent)
        await watcher.until(lambda: watcher.output.count(b".") > 1)
        assert watcher.output == b"a\rb\rc\rd\xff." * 2
        await client.stream.send(IAC + WILL + b"\0" + b"\r\0\r\n!")
        await watcher.hears(b"!")
        assert watcher.output.endswith(b".\r\0\r\n!")
        await client.hears(IAC + IAC + b".")


async def test_garbage_breaks_nothing(tmp_path: pathlib.Path) -> None:
    """Whatever comes by telnet, the client is served or disconnected, one whose command has no end with a reason."""
    port = free_port()
    chance = random.Random(7)
    words = [IAC, DO, DONT, WILL, WONT, SB, SE, b"\x2c", b"\x1f", b"\0", b"\1", b"\5", b"a", b"\xff\xff"]
    async with lab(tmp_path, Share("lab", ECHO, listen=(f"telnet://127.0.0.1:{port}",))) as server:
        user = await server.attach()
        for _ in range(200):
            async with connected(port) as client:
                with contextlib.suppress(anyio.BrokenResourceError):
                    await client.stream.send(b"".join(chance.choices(words, k=300)))
                    await client.stream.send_eof()
                await client.ends()
        async with connected(port) as client:
            await client.stream.send(IAC + WONT + b"\x2c" + IAC + SB + b"x" * 2000)
            assert b"a telnet command has no end within 1024 bytes" in await client.ends()
        await user.types(b"still here")
        await user.hears(b"still here")


async def test_unplug_and_return_are_told_by_telnet(tmp_path: pathlib.Path) -> None:
    """A client stays while the device is away, is told in words, and goes on; a raw one stays, too, and gets only bytes."""
    ports = [free_port(), free_port()]
    plug = Plug(tmp_path / "port")
    end = plug.plug_in()
    listen = (f"telnet://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}")
    try:
        async with (
            lab(tmp_path, Share("lab", device=str(plug.link), listen=listen)),
            connected(ports[0]) as person,
            connected(ports[1]) as program,
        ):
            await person.stream.send(IAC + WONT + b"\x2c")
            for each in person, program:
                while b"." not in each.output:
                    end.send(b".")
                    each.output += await each.stream.receive()
            plug.unplug()
            await person.hears(b"[asyncrevoke: it is away: unplugged: ")
            person.output = b""
            end = plug.plug_in()
            await person.hears(b"[asyncrevoke: it is back]")
            end.send(b"again")
            for each in person, program:
                await each.hears(b"again")
            assert set(program.output) == set(b".again")
    finally:
        plug.close()


# -- RFC 2217 --

#: Does what each line says, and answers what comes of it: a client that blocks, and leaves threads behind.
DOES = """
import sys, serial, serialx
for line in sys.stdin:
    try:
        try:
            answer = eval(line)
        except SyntaxError:
            answer = exec(line)
    except Exception as exc:
        answer = exc
    print(repr(answer), flush=True)
"""


class Program:
    """A client that does what it is told."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._answers = BufferedByteReceiveStream(process.stdout)

    async def does(self, *statements: str) -> str:
        """What the last of them gave."""
        answer = "None"
        for statement in statements:
            assert answer == "None"
            assert self._process.stdin is not None
            await self._process.stdin.send(f"{statement}\n".encode())
            with anyio.fail_after(30):
                answer = (await self._answers.receive_until(b"\n", 1 << 20)).decode()
        return answer

    async def until(self, statement: str, answer: str) -> None:
        end = anyio.current_time() + 30
        while (now := await self.does(statement)) != answer:
            assert anyio.current_time() < end, now


@contextlib.asynccontextmanager
async def program() -> AsyncIterator[Program]:
    async with running([sys.executable, "-c", DOES]) as process:
        yield Program(process)


@contextlib.asynccontextmanager
async def remote(tmp_path: pathlib.Path, how: str = "", **options: Any) -> AsyncIterator[tuple[Lab, int, Server]]:
    """A share of a port that has lines and breaks, of which the far end tells; and where it listens."""
    port = free_port()
    listen = (f"telnet://127.0.0.1:{port}{how}",)
    with server() as (place, listening), contextlib.closing(Server(listening)) as far:
        async with lab(tmp_path, Share("lab", device=f"rfc2217://{place}", listen=listen, **options)) as opened:
            admin = await opened.connect()
            with anyio.fail_after(30):
                while not any(node["path"].endswith("/recorder") for node in await admin.list()):
                    await anyio.sleep(0)
            yield opened, port, far


def settings_of(far: Server) -> tuple[object, ...]:
    line = far.port
    return line.baudrate, line.bytesize, line.parity, line.stopbits, line.xonxoff, line.rtscts


async def test_pyserial_sets_the_port(tmp_path: pathlib.Path) -> None:
    """Rate, bits, parity, stop bits, flow control, lines and breaks, when it is answered; it is told the far end's lines;
    data comes as it is.
    """
    async with remote(tmp_path) as (_, port, far), program() as client:
        where = f"'rfc2217://127.0.0.1:{port}', 19200, bytesize=7, parity='E', stopbits=2, rtscts=True, timeout=20"
        await client.does(f"client = serial.serial_for_url({where})")
        assert settings_of(far) == (19200, 7, "E", 2, False, True)
        await client.does("client.rtscts = False", "client.xonxoff = True", "client.baudrate = 115200")
        await client.does("client.parity = 'O'", "client.bytesize = 8", "client.stopbits = 1")
        assert settings_of(far) == (115200, 8, "O", 1, True, False)
        for on in False, True:
            await client.does(f"client.dtr = client.rts = client.break_condition = {on}")
            assert (far.port.dtr, far.port.rts, far.port.break_condition) == (on, on, on)
            far.manager.check_modem_lines()  # looped back there, and told
            await client.until("(client.dsr, client.cts)", f"({on}, {on})")
        await client.does(
            "client.break_condition = False", "client.reset_input_buffer()", "client.reset_output_buffer()"
        )
        data = bytes(range(256)) * 4
        assert await client.does(f"_ = client.write({data!r})", f"client.read({len(data)})") == repr(data)


async def test_serialx_sets_the_port(tmp_path: pathlib.Path) -> None:
    """As pyserial does."""
    async with remote(tmp_path) as (_, port, far), program() as client:
        where = (
            f"'rfc2217://127.0.0.1:{port}', 19200, byte_size=7, parity='E', stopbits=2, rtscts=True, read_timeout=20"
        )
        await client.does(f"client = serialx.serial_for_url({where})", "client.open()")
        assert settings_of(far) == (19200, 7, "E", 2, False, True)
        await client.does("client.reconfigure_port(baudrate=115200, parity='O', byte_size=8, stopbits=1, rtscts=False)")
        await client.does(
            "client.reconfigure_port(xonxoff=True)"
        )  # at once, pyserial's server would leave the other on
        assert settings_of(far) == (115200, 8, "O", 1, True, False)
        for on in False, True:
            await client.does(f"client.set_modem_pins(dtr={on}, rts={on})")
            assert (far.port.dtr, far.port.rts) == (on, on)
            far.manager.check_modem_lines()
            await client.until(
                "(client.get_modem_pins().dsr.to_bool(), client.get_modem_pins().cts.to_bool())", f"({on}, {on})"
            )
        await client.does("client.reset_write_buffer()")
        data = bytes(range(256)) * 4
        await client.does(f"_ = client.write({data!r})", "client.flush()", "got = b''")
        while len(got := await client.does(f"got += client.read({len(data)})", "got")) < len(repr(data)):
            pass
        assert got == repr(data)


async def test_port_is_changed_only_with_the_keyboard(tmp_path: pathlib.Path) -> None:
    """Without it, the answer is how the port is, which the client takes for a refusal. It is told once who has it."""
    async with remote(tmp_path) as (opened, port, far):
        user = await opened.attach()
        await user.is_told(yours=True)
        async with program() as client:
            await client.does("import io, logging", "log = io.StringIO()", "logging.basicConfig(stream=log)")
            says = await client.does(f"serial.serial_for_url('rfc2217://127.0.0.1:{port}?logging=warning', 19200)")
            assert "remote rejected value for option 'baudrate'" in says
            assert "root has the keyboard: what you type is thrown away" in await client.does("log.getvalue()")
        async with connected(port) as client:
            await client.stream.send(IAC + WILL + COM_PORT)
            for command, value in ((5, b"\x08"), (5, b"\x05"), (2, b"\x07"), (12, b"\x03")):
                await client.stream.send(IAC + SB + COM_PORT + bytes([command]) + value + IAC + SE + b"in vain")
            await client.hears(IAC + SB + COM_PORT + b"\x70\x03" + IAC + SE)
            told = [each for each in TOLD.findall(client.output) if each[0] != 107]
            words = b"\x64root has the keyboard: what you type is thrown away"
            assert told == [words, b"\x69\x08", b"\x69\x06", b"\x66\x08", b"\x70\x03"]
            assert b"keyboard" not in TOLD.sub(b"", client.output)
        assert settings_of(far) == (9600, 8, "N", 1, False, False)
        assert (far.port.dtr, far.port.break_condition, bytes(far.came)) == (True, False, b"")


@pytest.mark.parametrize("answers", [True, False])
async def test_program_is_told_why_it_is_taken_off(tmp_path: pathlib.Path, answers: bool) -> None:
    """By a text of its protocol, and not in its data. Who has not said that it is a program is told as a person."""
    async with remote(tmp_path) as (opened, port, _), connected(port) as client:
        admin = await opened.connect()
        await is_listed(admin, client.name)
        if answers:
            await client.stream.send(IAC + WILL + COM_PORT)
            await client.hears(IAC + SB + COM_PORT + b"\x6b")
        await admin.revoke(f"lab/{client.name}", "her slot is over")
        why = f"{client.name} was taken off by root: her slot is over".encode()
        output = await client.ends()
        assert (b"\x64" + why in TOLD.findall(output)) is answers
        assert (b"\r\n[asyncrevoke: %b]\r\n" % why in output) is not answers
        assert (why in TOLD.sub(b"", output)) is not answers


async def test_who_is_one_too_many_for_a_port_is_told(tmp_path: pathlib.Path) -> None:
    """Before it could say whether it is a program."""
    async with remote(tmp_path, "?limit=1") as (opened, port, _), connected(port) as one:
        await is_listed(await opened.connect(), one.name)
        async with connected(port) as two:
            assert await two.ends() == b"\r\n[asyncrevoke: 1 are connected already]\r\n"


async def test_who_speaks_of_the_port_has_agreed_to(tmp_path: pathlib.Path) -> None:
    """Who has not said so before is a program all the same: it is told the lines."""
    async with remote(tmp_path) as (_, port, far), connected(port) as client:
        await client.stream.send(IAC + SB + COM_PORT + b"\x01\0\0\0\0" + IAC + SE)
        await client.hears(IAC + SB + COM_PORT + b"\x65\0\0\x25\x80" + IAC + SE)
        await client.hears(IAC + SB + COM_PORT + b"\x6b")
        assert client.output.count(IAC + DO + COM_PORT) == 1
        assert far.port.baudrate == 9600


@pytest.mark.parametrize("goes", [True, False])
async def test_break_ends_with_the_keyboard_and_the_connection(tmp_path: pathlib.Path, goes: bool) -> None:
    """However a client goes that holds the line in a break, it is not left so."""
    async with remote(tmp_path) as (opened, port, far):

        async def is_broken(*, so: bool) -> None:
            with anyio.fail_after(30):
                while far.port.break_condition is not so:
                    await anyio.sleep(0)

        async with connected(port) as client:
            await client.stream.send(IAC + WILL + COM_PORT + IAC + SB + COM_PORT + b"\x05\x05" + IAC + SE)
            await client.hears(b"\x69\x05" + IAC + SE)
            await is_broken(so=True)
            if goes:
                await client.stream.aclose()
            else:
                other = await opened.attach("force")
                await other.is_told(yours=True)
            await is_broken(so=False)


async def test_telnets_own_break_is_sent(tmp_path: pathlib.Path) -> None:
    """As a person's telnet sends it, after what was typed before."""
    async with remote(tmp_path) as (_, port, far), connected(port) as client:
        await client.stream.send(b"x" * 3000 + IAC + b"\xf3")
        with anyio.fail_after(30):
            while not far.port.break_condition:
                await anyio.sleep(0)
        assert len(far.came) == 3000


SER2NET = """connection: &one
  accepter: telnet(rfc2217),tcp,127.0.0.1,{front}
  connector: telnet(rfc2217),tcp,127.0.0.1,{port}
"""


SER2NET = """connection: &one
  accepter: telnet(rfc2217),tcp,127.0.0.1,{front}
  connector: telnet(rfc2217),tcp,127.0.0.1,{port}
"""


@needs("ser2net")
async def test_ser2net_sets_the_port(tmp_path: pathlib.Path) -> None:
    """As a client of RFC 2217, of which a client of its own wants that."""
    front = free_port()
    config = tmp_path / "ser2net.yaml"
    async with remote(tmp_path) as (_, port, far), program() as client:
        config.write_text(SER2NET.format(front=front, port=port))
        command = ["ser2net", "-n", "-u", "-c", str(config), "-P", str(tmp_path / "pid")]
        async with running(command):
            where = f"'rfc2217://127.0.0.1:{front}', 19200, parity='E', timeout=20"
            await client.until(f"client = serial.serial_for_url({where})", "None")  # once it listens
            await client.does("client.dtr = False")
            with anyio.fail_after(30):
                while (*settings_of(far)[:3], far.port.dtr) != (19200, 8, "E", False):
                    await anyio.sleep(0)
            data = b"\xff\0hello"
            assert await client.does(f"_ = client.write({data!r})", f"client.read({len(data)})") == repr(data)
