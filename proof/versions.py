"""Runs tests on each Python, and in each way: ``python proof/versions.py [--pythons 3.11 3.14t] [--ways newest dev] [TEST ...]``

A Python is a version or a path. By default each of 3.11 to 3.15, free-threaded ones too, that is on the PATH or in pyenv's
folder. The ways: with the newest of each dependency, with the lowest that pyproject.toml permits (on the first Python alone, as
old releases do not know new Pythons), in asyncio's debug mode, and under ``-X dev``. TEST is a file or folder. Default: those of
the protocol, streams and names, without the searches of orders.

Prints a row for each, also for a Python that is not here. Ends with 1 if a test fails, or if none was run.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

HERE = pathlib.Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.13t", "3.14", "3.14t", "3.15", "3.15t")
#: By way: what Python is told, and its environment.
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "newest": ([], {}),
    "lowest": ([], {}),
    "debug": ([], {"PYTHONASYNCIODEBUG": "1"}),
    "dev": (["-X", "dev"], {}),
}
TESTS = ["tests/core", "tests/streams", "tests/registry", "--ignore=tests/core/test_interleavings.py"]


def found(python: str) -> str:
    """The path of a Python, or "" if it is not here."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv")) / "versions"
    here = [str(each) for each in sorted(pyenv.glob(f"*/bin/python{python}"))] if "/" not in python else [python]
    candidates = [*reversed(here), shutil.which(f"python{python}") or ""]
    return next((each for each in candidates if each and runs(each)), "")


def runs(python: str) -> bool:
    """Whether this is a Python: a shim may be there for one that is not."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def floors() -> list[str]:
    """The lowest release of each dependency that users may have, less those of telemetry: fastapi, of the tests, wants more."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [
        each for name, some in extras.items() if name not in ("test", "fuse", "otel") for each in some
    ]
    return [f"{name}=={low}" for each in wanted for name, low in re.findall(r"^([\w-]+)>=([\d.]+)", each)]


def made(python: str, folder: pathlib.Path, *, lowest: bool) -> str:
    """Make an environment with the project and its tests; it returns what is wrong."""
    constraints = folder.with_suffix(".txt")
    constraints.write_text("\n".join(floors() if lowest else []))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "-c", str(constraints), "-e", f"{HERE}[test]"]
    for command in [python, "-m", "venv", str(folder)], pip:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["it failed"]
            return f"not installed: {said[-1]}"
    return ""


def tested(folder: pathlib.Path, way: str, tests: list[str]) -> tuple[bool, str]:
    """Run them; it returns whether all passed, of more than none, and how many did."""
    words, environment = WAYS[way]
    command = [
        str(folder / "bin" / "python"),
        *words,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    done = subprocess.run(command, cwd=HERE, env=os.environ | environment, capture_output=True, text=True, check=False)
    *_, last = ["", *done.stdout.splitlines()]
    passed = re.search(r"(\d+) passed", last)
    failed = "".join(f"\n    {line}" for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")))
    return done.returncode == 0 and passed is not None, last + failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="*", default=PYTHONS)
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("tests", nargs="*", default=TESTS)
    options = parser.parse_args()
    ran, wrong, lowest_done = 0, 0, False
    for name in options.pythons:
        if not (python := found(name)):
            print(f"{name:6} {'-':7} is not here", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            for way in options.ways:
                if way == "lowest" and lowest_done:
                    continue
                lowest_done |= way == "lowest"
                environment = pathlib.Path(folder, "lowest" if way == "lowest" else "newest")
                fault = "" if environment.exists() else made(python, environment, lowest=way == "lowest")
                good, said = (False, fault) if fault else tested(environment, way, options.tests)
                ran += not fault
                wrong += not good
                print(f"{name:6} {way:7} {'right' if good else 'WRONG'}  {said}", flush=True)
    if not ran:
        print("WRONG: nothing was run")
    return int(wrong > 0 or not ran)


if __name__ == "__main__":
    sys.exit(main())
