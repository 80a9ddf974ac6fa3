"""What is made when the package is built, and nowhere kept: its manual pages."""

import pathlib
import shutil
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPages(BuildHookInterface[Any]):
    """Puts them into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  # the interface's
        """Write them to a folder that lasts until the wheel is there."""
        sys.path[:0] = [str(pathlib.Path(self.root, each)) for each in ("docs", "src")]
        import manual  # noqa: PLC0415  # it is found from here on

        self._folder = tempfile.mkdtemp()
        for page in manual.write(pathlib.Path(self._folder), self.metadata.version):
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """The wheel is there."""
        shutil.rmtree(self._folder)
