"""A Debian kernel to boot, downloaded and unpacked by apt, as any user and for this machine's architecture only.

The rest of the guest is this machine itself: its files, seen through the emulator and never written to. So the Python, its
packages and the code under test are those that the tests run on.
"""

import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from typing import NamedTuple

RELEASES = ("oldstable", "stable")
CACHE = pathlib.Path(
    os.environ.get("ASYNCREVOKE_VM")
    or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "asyncrevoke-vm")
)
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
#: What is needed, and the package that has it.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "modprobe": "kmod",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}


class UnavailableError(Exception):
    """No virtual machine can be had here; the text says what is missing."""


class Image(NamedTuple):
    """:ivar root: has the kernel's modules, and a busybox"""

    root: pathlib.Path

    @property
    def modules(self) -> pathlib.Path:
        return self.root / "lib" / "modules"

    @property
    def version(self) -> str:
        return next(self.modules.iterdir()).name

    @property
    def kernel(self) -> pathlib.Path:
        return self.root / "boot" / f"vmlinuz-{self.version}"

    @property
    def busybox(self) -> pathlib.Path:
        return next(self.root.glob("**/bin/busybox"))

    def files(self, *modules: str) -> list[pathlib.Path]:
        """The files of these modules and of those that they need, in the order in which they are loaded."""
        found: list[pathlib.Path] = []
        for module in modules:
            shown = run("modprobe", "-d", str(self.root), "-S", self.version, "--show-depends", module)
            files = [pathlib.Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod")]
            found += [file for file in files if file not in found]
        return found


def image(release: str) -> Image:
    """The kernel of a release. It is downloaded once: remove the folder in the cache to have a newer one.

    :raises UnavailableError: if it cannot be had, or cannot be booted here
    """
    if platform.machine() != "x86_64":
        raise UnavailableError(f"the guest's programs are this machine's, and need an x86_64, not {platform.machine()}")
    if missing := [package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH)]:
        raise UnavailableError(f"not installed: apt-get install {' '.join(missing)}")
    root = CACHE / release
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            made = _unpacked(release, pathlib.Path(scratch))
            made.rename(root)
    return Image(root)


def _unpacked(release: str, scratch: pathlib.Path) -> pathlib.Path:
    """The kernel's package and busybox's, from a mirror of this machine's own, which apt is told of in a folder apart."""
    for folder in "lists/partial", "archives/partial":
        (scratch / folder).mkdir(parents=True)
    sources = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages")
    mirrors = [line.split()[2] for line in sources.splitlines() if line.startswith("Debian Debian ")]
    if not mirrors:
        raise UnavailableError("apt knows no mirror of Debian's here: apt-get update")
    (scratch / "sources.list").write_text(f"deb {mirrors[0]} {release} main\n")
    options = [
        f"Dir::State::Lists={scratch}/lists",
        f"Dir::Cache={scratch}",
        f"Dir::Etc::SourceList={scratch}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        "Dir::State::Status=/dev/null",
        "APT::Sandbox::User=",
        "APT::Architecture=amd64",
    ]
    apart = [word for option in options for word in ("-o", option)]
    run("apt-get", "update", *apart, "-o", "APT::Update::Error-Mode=any")
    needs = run("apt-cache", *apart, "depends", "linux-image-amd64")
    kernel = next(line.split()[1] for line in needs.splitlines() if "Depends: linux-image-" in line)
    run("apt-get", *apart, "download", kernel, "busybox-static", cwd=scratch)
    root = scratch / "root"
    for package in scratch.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(root))
    if not (root / "lib").exists():  # since Debian 13
        (root / "lib").symlink_to("usr/lib")
    run("depmod", "-b", str(root), kernel.removeprefix("linux-image-"))
    return root


def run(*command: str, cwd: pathlib.Path | None = None) -> str:
    """What a program printed.

    :raises UnavailableError: if it failed, with its last words
    """
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | {"PATH": PATH}, check=False
    )
    if done.returncode:
        raise UnavailableError(f"{' '.join(command[:2])}: {(done.stderr.strip() or 'it failed').splitlines()[-1]}")
    return done.stdout
