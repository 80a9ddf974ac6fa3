"""Runs every order of the steps of each scenario: ``python proof/orders.py [WORDS] [--deviations 3] [-n 2]``

An order deviates from asyncio's own in some places. All orders of up to so many deviations are run, in three rooms: the
protocol, the entries of a directory, and the log of a cluster. Prints how many schedules each scenario has. Ends with 1 if an
order breaks a promise, if a search is not exhausted, or if a scenario has no schedule.
"""

import argparse
import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parents[1]
ROOMS = (
    "tests/core/test_interleavings.py",
    "tests/adapters/test_entry_interleavings.py",
    "tests/cluster/test_cluster_interleavings.py",
)


class Figures:
    """What each scenario has found, printed when it ends."""

    def __init__(self) -> None:
        self.scenarios = self.schedules = self.wrong = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print a row for a search, and the story of whatever failed."""
        if report.failed:
            self.wrong += 1
            print(f"    WRONG  {report.nodeid}\n{report.longreprtext}", flush=True)
        found = dict(report.user_properties)
        if report.when == "call" and "schedules" in found:
            self.scenarios += 1
            self.schedules += int(str(found["schedules"]))
            print(f"{found['schedules']:>9,} schedules  {report.duration:7.1f} s  {report.nodeid}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="?", default="", help="of the scenarios' names, as pytest -k takes them")
    parser.add_argument("--deviations", type=int, default=3)
    parser.add_argument("-n", dest="processes", default="0", help="of pytest-xdist. Default: none")
    options = parser.parse_args()
    os.environ["ASYNCREVOKE_DEVIATIONS"] = str(options.deviations)
    os.chdir(HERE)
    figures = Figures()
    done = pytest.main(
        [
            "-o",
            "addopts=",
            "-o",
            "faulthandler_timeout=0",
            "-p",
            "no:terminal",
            "-n",
            options.processes,
            "-k",
            options.words,
            *ROOMS,
        ],
        plugins=[figures],
    )
    print(f"{figures.schedules:9,} schedules of {figures.scenarios} scenarios, {options.deviations} deviations")
    if not figures.schedules:
        print("WRONG: nothing was searched")
    return int(done != pytest.ExitCode.OK or figures.wrong > 0 or not figures.schedules)


if __name__ == "__main__":
    sys.exit(main())
