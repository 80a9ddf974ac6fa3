"""What a revocation did on every host."""

import json
from dataclasses import dataclass
from typing import Literal, Self

from asyncrevoke.lowlevel import Revocation, printable

from .log import Member

_NAMED = 3  # stragglers in one line


@dataclass(frozen=True, slots=True)
class HostReport:
    """What one host did.

    :ivar state: "done": all is released. "draining": it refuses new sessions, and somebody is still inside. "over": it did
        not answer, and its lease is over: it has failed closed, or is dead. "silent": it did not answer
    :ivar left: seconds until its lease is over, if that was not waited for
    :ivar failed: what releases and hooks raised there
    :ivar member: id of the member that reports this
    """

    host: str
    state: Literal["done", "draining", "over", "silent"]
    kicked: int = 0
    released: int = 0
    stragglers: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    left: float | None = None
    member: str = ""

    @classmethod
    def of(cls, member: Member, act: Revocation | None) -> Self:
        """Report what a revocation has done so far. None: nothing was open."""
        if act is None:
            return cls(member.host, "done", member=member.id)
        report = act.report
        return cls(
            member.host,
            "done" if act.done() else "draining",
            report.kicked,
            report.released,
            tuple(str(each) for each in act.stragglers(_NAMED)),
            tuple(repr(each) for each in report.errors),
            member=member.id,
        )

    def dump(self) -> str:
        """Return it as text for the engine."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `dump` has made. Fields that a later version added are ignored."""
        facts = json.loads(text)
        facts |= {name: tuple(facts[name]) for name in ("stragglers", "failed")}
        return cls(**{name: facts[name] for name in cls.__slots__ if name in facts})

    def __str__(self) -> str:
        match self.state:
            case "draining":
                number = len(self.stragglers)
                said = f"{number} straggler{'s'[: number != 1]} ({'; '.join(self.stragglers)})"
            case "silent" if self.left is not None:
                said = f"it did not answer, its lease ends in {self.left:.1f} s"
            case "silent":
                said = "it did not answer, and goes on, because it is not strict"
            case "over":
                said = "it did not answer, and its lease is over"
            case _:
                said = f"{self.kicked} kicked, {self.released} released"
        failed = "".join(f"; failed: {each}" for each in self.failed)
        return printable(f"{self.host}: {said}{failed}")


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """What a revocation did. `str()` of it is one line to print.

    :ivar name: the path that was revoked
    :ivar hosts: a report for each member that there was when the entry was appended
    """

    name: str
    reason: str
    hosts: tuple[HostReport, ...]

    @property
    def complete(self) -> bool:
        """Whether each host is done, or over. A host that is over has refused everybody since its lease ended. It may be
        paused, with connections still open. To know that nobody is inside, check that each `state` is "done". Without
        hosts it is False, because the log may have lost them.
        """
        return bool(self.hosts) and all(host.state in ("done", "over") for host in self.hosts)

    @property
    def kicked(self) -> int:
        """Operations that were waiting and were ended."""
        return sum(host.kicked for host in self.hosts)

    @property
    def released(self) -> int:
        """Files released."""
        return sum(host.released for host in self.hosts)

    @property
    def head(self) -> str:
        """The beginning of the line, which sums up all hosts."""
        why = f" ({self.reason})" if self.reason else ""
        done = sum(host.state == "done" for host in self.hosts)
        said = f"on {done} of {len(self.hosts)} hosts: {self.kicked} kicked, {self.released} released"
        return printable(f"{self.name!r} revoked{why} {said}")

    def __str__(self) -> str:
        return self.head + "".join(f"; {host}" for host in self.hosts if host.state != "done" or host.failed)
