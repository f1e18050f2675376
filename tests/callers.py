"""A daemon with handlers of every sort, its queue, and hands to give it work."""

from pathlib import Path

from postgrest import AsyncPostgrestClient

from tests import places
from tests.conftest import RunningStack


class Callers(places.Place):
    """A place whose handlers also write files, for witnesses."""

    target = "tests.apps.callers:app"

    def __init__(self, stack: RunningStack, rest: AsyncPostgrestClient, eventually, directory: Path) -> None:
        super().__init__(stack, rest, eventually)
        self.directory = directory

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(TEST_DIRECTORY=str(self.directory), **settings)

    def witness(self, name: str) -> list[list[str]]:
        """Return what a handler wrote, line by line, in words; the first is its process."""
        path = self.directory / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def alive(pid: int) -> bool:
    """Whether a process is there, and not just waiting for somebody to notice its end."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
