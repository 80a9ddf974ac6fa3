"""What is released: an sdist that is complete, the wheel that is built from it, and that wheel alone in a new environment."""

import email
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
VERSION = importlib.metadata.version("asyncrevoke")


def done(*command: object, cwd: pathlib.Path = ROOT) -> str:
    """What a program prints, which must succeed."""
    ran = subprocess.run([str(each) for each in command], cwd=cwd, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder that the sdist unpacks to."""
    folder = tmp_path_factory.mktemp("sdist")
    done(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    with tarfile.open(folder / f"asyncrevoke-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"asyncrevoke-{VERSION}"


@pytest.fixture(scope="module")
def wheel(sdist: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel that is built from the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    done(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=sdist)
    return folder / f"asyncrevoke-{VERSION}-py3-none-any.whl"


def tracked() -> set[str]:
    """The files of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git repository: nothing tells which files are ours")
    return set(done("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines())


def test_the_sdist_has_all_that_proves_it_and_nothing_else(sdist: pathlib.Path) -> None:
    """Tests, docs, examples, benchmarks and proofs are in it; of the repository only CI and findings about others are not."""
    there = {file.relative_to(sdist).as_posix() for file in sdist.rglob("*") if file.is_file()}
    assert there - {"PKG-INFO"} == {file for file in tracked() if not file.startswith((".ci/", "findings/"))}
    assert {"SECURITY.md", "CONTRIBUTING.md", "LICENSE", "tests/test_release.py", "docs/cluster.md"} < there


def test_the_wheel_has_the_package_and_its_manual_and_nothing_else(wheel: pathlib.Path) -> None:
    """The package as it is in the repository, with its types and the web page's files; a manual page for each command."""
    own = {file.removeprefix("src/") for file in tracked() if file.startswith("src/")}
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
    package = {name for name in there if name.startswith("asyncrevoke/")}
    assert package == own
    web = "asyncrevoke/console/web"
    assert {"asyncrevoke/py.typed", f"{web}/static/index.html", f"{web}/xterm/xterm.mjs", f"{web}/xterm/LICENSE"} < own
    pages = f"asyncrevoke-{VERSION}.data/data/share/man/man1/asyncrevoke"
    manual = {name for name in there if name.startswith(pages)}
    assert {f"{pages}.1", f"{pages}-share.1", f"{pages}-web.1"} < manual
    info = {name for name in there if name.startswith(f"asyncrevoke-{VERSION}.dist-info/")}
    assert there == package | manual | info


def test_the_wheel_says_what_it_is(wheel: pathlib.Path) -> None:
    """Its metadata has the licence, the README and the Pythons, and needs nothing but AnyIO where no extra is asked for."""
    with zipfile.ZipFile(wheel) as archive:
        told = email.message_from_bytes(archive.read(f"asyncrevoke-{VERSION}.dist-info/METADATA"))
    assert (told["Name"], told["Version"], told["License-Expression"]) == ("asyncrevoke", VERSION, "MIT")
    assert (told["Requires-Python"], told["Description-Content-Type"]) == (">=3.11", "text/markdown")
    assert told.get_payload() == (ROOT / "README.md").read_text()
    assert [each for each in told.get_all("Requires-Dist", []) if "extra ==" not in each] == ["anyio>=4.16"]
    assert "Typing :: Typed" in told.get_all("Classifier", [])


def test_the_wheel_works_where_nothing_else_is_installed(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """With AnyIO and what that needs it can be imported, tells its version, and shows the demo."""
    pytest.importorskip("pip", reason="there is no pip here to install the wheel with")
    done(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    python = tmp_path / "bin/python"
    done(sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (tmp_path / "lib").glob("python*/site-packages")
    for name in "anyio", "idna", "typing_extensions":  # by their paths, so that no network is needed
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = pathlib.Path(spec.origin)
            origin = origin.parent if origin.name == "__init__.py" else origin
            (packages / origin.name).symlink_to(origin)
    where = done(python, "-W", "error", "-c", "import asyncrevoke; print(asyncrevoke.__file__)", cwd=tmp_path)
    assert where.strip() == str(packages / "asyncrevoke/__init__.py")
    assert done(tmp_path / "bin/asyncrevoke", "--version", cwd=tmp_path) == f"asyncrevoke {VERSION}\n"
    demo = done(tmp_path / "bin/asyncrevoke", "demo", cwd=tmp_path)
    assert "it has really gone: shell" in demo
