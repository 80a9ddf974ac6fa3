"""Who may do what over a control socket, where a service says so itself."""

import pathlib
import stat

import anyio
import pytest

from asyncrevoke.control import Access, ControlError, Peer, connect
from test_control import served

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "control")


class Rules(Access):
    """Nobody sees the cellar, and nobody takes the attic away."""

    def looks(self, _: Peer, path: str) -> bool:
        return not path.startswith("cellar")

    def revokes(self, peer: Peer, path: str) -> bool:
        return self.looks(peer, path) and not path.startswith("attic")


async def test_what_somebody_may_not_look_at_is_not_there(path: str, tmp_path: pathlib.Path) -> None:
    """It is neither listed nor watched, and no name and no path leads to it."""
    device = tmp_path / "device"
    device.touch()
    async with served(path, access=Rules()) as (registry, tasks):
        hidden, seen = registry.name("cellar", device).open("wine"), registry.name("hall").open("coat")
        events: list[str] = []

        async def watch() -> None:
            async with await connect(path) as control:
                async for event in control.watch():
                    events.append(str(event.get("path", event)))  # noqa: PERF401  # it has no end

        tasks.start_soon(watch)
        async with await connect(path) as control:
            assert {node["path"] for node in await control.list(who=True)} == {"hall", "hall/coat"}
            assert await control.list("cellar") == []
            for what in "cellar", "cellar/wine", str(device):
                with pytest.raises(ControlError) as refused:
                    await control.revoke(what)
                assert refused.value.code in ("forbidden", "unknown-path")
            while not events:
                await anyio.sleep(0)
            hidden.close()
            seen.close()
            while "hall/coat" not in events:
                await anyio.sleep(0.001)
        assert not any("cellar" in each for each in events)


async def test_who_may_look_may_not_yet_take_away(path: str) -> None:
    """Of everything only what somebody may take goes; what he may only look at is refused to him by its name."""
    async with served(path, access=Rules()) as (registry, _), await connect(path) as control:
        nodes = {name: registry.name(name).open() for name in ("cellar", "attic", "hall")}
        with pytest.raises(ControlError, match="user 'root' lacks the right 'revoke' on 'attic'"):
            await control.revoke("attic")
        assert (await control.revoke("", below=True))["done"]
        assert [name for name, node in nodes.items() if node.revoked] == ["hall"]


async def test_socket_has_the_mode_that_is_given(path: str) -> None:
    """So that those may connect of whom the service decides itself."""
    async with served(path, mode=0o622):
        assert stat.S_IMODE(pathlib.Path(path).stat().st_mode) == 0o622
