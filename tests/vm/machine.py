"""A virtual machine with USB devices that can be unplugged: qemu emulates it, so no privilege and no KVM are needed."""

import contextlib
import json
import lzma
import os
import pathlib
import shlex
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Self

from image import PATH, Image

#: Devices by the name under which the guest has them plugged and unplugged.
DEVICES: dict[str, dict[str, Any]] = {
    "usb1": {"driver": "usb-serial", "chardev": "usb1", "serial": "RIG1", "always-plugged": True},
    "usb2": {"driver": "usb-serial", "chardev": "usb2", "serial": "RIG2", "always-plugged": True},
    "sound": {"driver": "usb-audio", "audiodev": "silence"},
    "tablet": {"driver": "usb-tablet", "serial": "RIG-tablet", "port": "3"},
    "keyboard": {"driver": "usb-kbd", "serial": "RIG-keyboard", "port": "4"},
}
LINES = "usb1", "usb2"

#: The first process. This machine's files are below a layer in memory, which takes what the guest writes.
INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
for module in /modules/*; do insmod $module; done
mkdir /host /memory /root
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host
mount -t tmpfs tmpfs /memory
mkdir /memory/files /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/files,workdir=/memory/work overlay /root
cd /root
mkdir -p proc sys dev run lib/modules
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mkdir dev/pts
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs run
mount -t debugfs debugfs sys/kernel/debug
mount -o bind ./{modules} lib/modules
chroot . /sbin/modprobe configfs
mount -t configfs configfs sys/kernel/config
stty -F dev/ttyS1 raw -echo
chroot . {command}
poweroff -f
"""


class Machine:
    """A booted machine, whose guest runs a command and asks for what only the outside can do.

    :ivar image: what it has booted
    """

    def __init__(self, image: Image, command: list[str], folder: pathlib.Path) -> None:
        self.image = image
        self._console = folder / "console"
        (folder / "initrd").write_bytes(_initrd(image, command))
        near, far = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        names = "qmp", "channel", *LINES
        self._sockets: dict[str, socket.socket] = dict(zip(names, near, strict=True))
        arguments = [
            # By one thread: of two, one may meet a breakpoint of the kernel's that the other has just taken out, and it dies.
            *("-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1024"),
            *("-nodefaults", "-display", "none", "-nic", "none", "-no-reboot"),
            *("-kernel", str(image.kernel), "-initrd", str(folder / "initrd")),
            *("-append", "console=ttyS0 panic=-1 tsc=reliable no_timer_check"),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-serial", f"file:{self._console}", "-serial", "chardev:channel", "-mon", "chardev=qmp,mode=control"),
            *("-device", "qemu-xhci", "-audiodev", "none,id=silence"),
        ]
        for name, end in zip(names, far, strict=True):
            arguments += "-chardev", f"socket,id={name},fd={end.fileno()}"
        self._qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *arguments],  # it ends with us, however we do
            stdin=subprocess.DEVNULL,
            pass_fds=[end.fileno() for end in far],
            env=os.environ | {"PATH": PATH},
        )
        for end in far:
            end.close()
        for name in LINES:
            threading.Thread(target=_drain, args=(self._sockets[name],), daemon=True).start()
        self._monitor = self._sockets["qmp"].makefile("rw")
        self._events: list[dict[str, Any]] = []

    def requests(self) -> Iterator[list[Any]]:
        """What the guest says, until it ends. Each is to be answered."""
        for line in self._sockets["channel"].makefile("rb"):
            yield json.loads(line)

    def answer(self, answer: object) -> None:
        self._sockets["channel"].sendall(json.dumps(answer).encode() + b"\n")

    def plug(self, name: str) -> None:
        self._execute("device_add", id=name, **DEVICES[name])

    def unplug(self, name: str) -> None:
        """Returns when the device is gone."""
        self._events.clear()
        self._execute("device_del", id=name)
        while not any(event["data"].get("device") == name for event in self._events):
            self._hear()

    def send(self, line: str, text: str) -> None:
        """Send from the far end of a serial line."""
        self._sockets[line].sendall(text.encode())

    def feed(self, name: str, number: int) -> None:
        """Press a key of the keyboard, or move the tablet's pen: another for each number."""
        key, place = {"type": "qcode", "data": "asdfghjkl"[number]}, {"axis": "x", "value": 1000 * (number + 1)}
        events: dict[str, list[dict[str, Any]]] = {
            "keyboard": [{"type": "key", "data": {"down": down, "key": key}} for down in (True, False)],
            "tablet": [{"type": "abs", "data": place}],
        }
        self._execute("input-send-event", events=events[name])

    def _execute(self, command: str, **arguments: object) -> None:
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}))
        self._monitor.flush()
        while "return" not in (said := self._hear()):
            if "error" in said:
                raise RuntimeError(f"{command}: {said['error']['desc']}")

    def _hear(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._monitor.readline())
        if said.get("event") == "DEVICE_DELETED":
            self._events.append(said)
        return said

    def console(self) -> str:
        """The last that the guest's kernel and programs have printed."""
        return "\n".join(self._console.read_text(errors="replace").splitlines()[-40:])

    def kill(self) -> None:
        self._qemu.kill()

    def __enter__(self) -> Self:
        self._hear()  # the greeting
        self._execute("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._qemu.kill()
        self._qemu.wait()
        self._monitor.close()
        for each in self._sockets.values():
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # which ends the thread that drains it
            each.close()


@contextlib.contextmanager
def booted(image: Image, command: list[str], limit: float) -> Iterator[Machine]:
    """A machine that runs a command and ends, or is ended after so many seconds."""
    with tempfile.TemporaryDirectory() as folder, Machine(image, command, pathlib.Path(folder)) as machine:
        timer = threading.Timer(limit, machine.kill)
        timer.start()
        try:
            yield machine
        finally:
            timer.cancel()
            timer.join()


def _drain(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while line.recv(65536):
            pass


def _initrd(image: Image, command: list[str]) -> bytes:
    """An archive with all that is needed to come to this machine's files: the kernel's driver for them, and a shell."""
    init = INIT.format(modules=shlex.quote(str(image.modules)), command=shlex.join(command))
    files = {"init": init.encode(), "bin/busybox": image.busybox.read_bytes()}
    for number, file in enumerate(image.files("virtio_pci", "9pnet_virtio", "9p", "overlay")):
        data = file.read_bytes()
        files[f"modules/{number:02}"] = lzma.decompress(data) if file.suffix == ".xz" else data
    made = [_entry(folder, 0o40755, b"") for folder in ("bin", "modules", "dev")]
    made += [_entry(name, 0o100755, data) for name, data in files.items()]
    return b"".join([*made, _entry("TRAILER!!!", 0, b"")])


def _entry(name: str, mode: int, data: bytes) -> bytes:
    """One of a cpio archive of the kind newc (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
