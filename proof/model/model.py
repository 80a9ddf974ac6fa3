"""Searches the models of the protocol, whole: ``python proof/model/model.py`` (apt-get install spin gcc)

`protocol.pml` is the protocol of src/asyncrevoke/_core: no state breaks an invariant, and each revocation completes, if
operations that are kicked leave. Each of its planted faults is found. `rfc.pml` is revoke_it of 2013: fine with one revoker,
and with two it hangs.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

HERE = pathlib.Path(__file__).parent
#: What is left out or put wrongly in the model, by the number of the fault.
FAULTS = {
    1: "a node is released although children are open",
    2: "a release that runs is begun again",
    3: "the sweep passes over what is below a second parent",
    4: "nobody looks whether all had left before the revocation",
    5: "the end of the grace kicks nobody",
    6: "an object keeps one revocation alone, the latest",
    7: "a nested operation is admitted after the kick",
    8: "whoever leaves last does not release",
    9: "a release that took its time does not go on to the parents",
    10: "a kick takes away the result that an operation has",
}
SAFETY, LIVENESS = ("-DSAFETY", "-DNOCLAIM"), ("-DNFAIR=8",)


class UnavailableError(Exception):
    """There is no spin here, or no compiler."""


@dataclass(frozen=True)
class Search:
    """One model, searched for one kind of fault.

    :ivar broken: what must be found: nothing, or a pattern of spin's words
    """

    what: str
    model: str
    defines: tuple[str, ...] = ()
    kind: tuple[str, ...] = SAFETY
    broken: str = ""


@dataclass(frozen=True)
class Found:
    """What the search has found, and in how many states."""

    search: Search
    states: int
    errors: str

    @property
    def right(self) -> bool:
        """Whether it is what must be found, in more than no states."""
        search = self.search
        return self.states > 0 and (
            re.search(search.broken, self.errors) is not None if search.broken else not self.errors
        )


def searches() -> Iterator[Search]:
    yield Search("no state breaks an invariant", "protocol.pml")
    yield Search("each revocation completes", "protocol.pml", kind=LIVENESS)
    yield Search("the same in slices: no state breaks an invariant", "protocol.pml", ("-DSLICES",))
    for number, fault in FAULTS.items():
        yield Search(
            f"planted: {fault}", "protocol.pml", (f"-DFAULT={number}",), LIVENESS, "acceptance cycle|assertion violated"
        )
    yield Search("revoke_it of the RFC, one revoker", "rfc.pml", ("-DREVOKERS=1",))
    yield Search("revoke_it of the RFC, two revokers: hangs", "rfc.pml", ("-DREVOKERS=2",), broken="invalid end state")


def run(search: Search) -> Found:
    """Search a model.

    :raises UnavailableError: if spin or a compiler is not there
    """
    if not shutil.which("spin") or not shutil.which("gcc"):
        raise UnavailableError("apt-get install spin gcc")
    with tempfile.TemporaryDirectory() as folder:

        def do(*command: str) -> str:
            return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout

        do("spin", *search.defines, "-a", str(HERE / search.model))
        do("gcc", "-w", "-O2", "-DCOLLAPSE", *search.kind, "-o", "pan", "pan.c")
        said = do("./pan", "-m1000000", *(("-a", "-f") if search.kind is LIVENESS else ()))
    states = re.search(r"(\d+) states, stored", said)
    errors = re.findall(r"^pan:\d+: (assertion violated|acceptance cycle|invalid end state|.*)", said, re.MULTILINE)
    if re.search("max search depth too small|Search not completed", said) and not errors:
        errors = ["the search was not completed"]
    return Found(search, int(states[1]) if states else 0, ", ".join(errors))


def main() -> int:
    wrong = 0
    for search in searches():
        found = run(search)
        wrong += not found.right
        print(
            f"{found.states:9,} states  {'right' if found.right else 'WRONG'}  {search.what}: {found.errors or 'no error'}",
            flush=True,
        )
    return int(wrong > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UnavailableError as exc:
        sys.exit(f"the models were not searched: {exc}")
