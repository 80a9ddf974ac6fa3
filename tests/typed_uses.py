"""What users write, for type checkers alone: mypy and pyright must agree with each line. Nothing here is run."""

import asyncio
from typing import Any, assert_type

import anyio
from anyio.abc import ByteStream

from asyncrevoke import (
    FdStream,
    Key,
    Name,
    PtySession,
    PtyStream,
    Registry,
    Report,
    Revocation,
    Revokable,
    RevokableAttribute,
    RevokableStream,
    RevokedError,
    SerialDevice,
    SerialStream,
    Use,
    answers,
    log_events,
    observe,
    open_device,
    open_pty,
    open_serial,
    revoke_all,
    revoke_threadsafe,
    serial_device,
    watch_devices,
)
from asyncrevoke.adapters.asgi import RevokableApp
from asyncrevoke.adapters.asyncio_streams import wrap_streams
from asyncrevoke.adapters.membrane import revokable_proxy
from asyncrevoke.control import serve


async def the_protocol() -> None:
    async with Revokable("port", release=lambda: print("closed")) as port:
        handle = port.open("alice", also=[Revokable("token")], answers=answers.TTY)
        assert_type(handle, Revokable)
        try:
            with handle.using(idle=True) as use:
                assert_type(use, Use)
                use.on_kick(lambda: None)
        except RevokedError as error:
            reason: str = error.reason
            sent: int | None = error.sent
            print(reason, error.name, error.generation, error.in_flight, sent, error.errno)
        revocation = port.revoke("unplugged", grace=1.0)
        assert_type(revocation, Revocation)
        assert_type(await revocation, Report)
        print([user.name for user in revocation.stragglers()])
    await revoke_all([port], "all")
    revoke_threadsafe(port, "from a thread")

    async def release() -> None:
        await anyio.sleep(0)

    Revokable("closes slowly", release=release)


async def streams(inner: ByteStream, fd: int) -> None:
    stream: ByteStream = RevokableStream(inner, Revokable("connection"))
    await stream.send(b"hello")
    async with FdStream(fd) as own:
        assert_type(await own.receive_exactly(3), bytes)
        async for line in own.lines():
            assert_type(line, bytes)
        assert_type(own.extra(RevokableAttribute.handle), Revokable)


async def devices() -> None:
    async with open_serial("/dev/ttyUSB0", 115200, fan_out=True) as port:
        assert_type(port, SerialDevice)
        assert_type(port.open("alice"), SerialStream)
    async with serial_device("/dev/serial/by-id/X", 9600) as follows:
        async for generation in follows:
            assert_type(generation, SerialDevice)
    async with open_device("/dev/hidraw0") as device:
        print(await device.open("bob").receive())
    async with watch_devices() as events:
        async for event in events:
            print(event.action)
    async with open_pty(["sh"]) as session:
        assert_type(session, PtySession)
        assert_type(session.open("carol"), PtyStream)


async def names_and_web_sessions(app: Any) -> None:
    live = Registry("live")
    assert_type(live.name("gps", "/dev/ttyUSB0"), Name)
    assert_type(live["alice", "token7"], Revokable)
    assert_type(live["alice"].revoke("logged out"), Revocation)
    assert_type(live.hangup("/dev/serial/by-id", uid=1000), Revocation)
    print(Key, RevokableApp(app, live, key=lambda scope: ("alice", scope["token"])))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, live, "/run/lab.sock")
        tasks.start_soon(observe, live.root, log_events)


async def faces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Revokable) -> None:
    ours, theirs = wrap_streams(reader, writer)
    assert_type(await ours.readline(), bytes)
    theirs.write(b"hello")
    await theirs.drain()
    lent = revokable_proxy({"x": 1}, handle)
    print(lent["x"])
