"""The command: arguments, signals, the table at the end, and the exit code."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.fleet import inventory, rollout
from deploy.fleet.host import pack

_ROOT = Path(__file__).parents[2]
_USAGE = 2
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "?")
"""What could steer a terminal, in texts that come from machines."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy, and return 0 if every machine is as it should be, 1 if not, 2 for what cannot be meant."""
    options = _parser().parse_args(arguments)
    try:
        fleet = inventory.load(options.inventory, tuple(options.only))
        archive = pack(_ROOT, options.wheel)
    except (inventory.InventoryError, OSError) as error:
        sys.stderr.write(f"deploy: {error}\n")
        return _USAGE
    with _alone(options.inventory) as alone, tempfile.TemporaryDirectory(prefix="deploy-") as sockets:
        if not alone:
            sys.stderr.write(f"deploy: another deployment with {options.inventory} is under way\n")
            return _USAGE
        wheel = options.wheel and options.wheel.name
        roll = rollout.Rollout(fleet, archive, wheel, Path(sockets), _tell, options.all_or_nothing)
        good = asyncio.run(_carry_out(roll, dry_run=options.dry_run))
    reports = list(roll.reports.values())
    if options.json:
        sys.stdout.write(json.dumps({"ok": good, "hosts": [_row(report) for report in reports]}) + "\n")
    else:
        sys.stdout.write(_table(reports, dry_run=options.dry_run))
    return 0 if good else 1


async def _carry_out(roll: rollout.Rollout, *, dry_run: bool) -> bool:
    try:
        return await (roll.check() if dry_run else _heed_signals(roll))
    finally:
        await roll.close()


async def _heed_signals(roll: rollout.Rollout) -> bool:
    doing = asyncio.create_task(roll.run(), name="rollout")
    loop = asyncio.get_running_loop()
    heard: list[signal.Signals] = []

    def hear(number: signal.Signals) -> None:
        heard.append(number)
        roll.stop()
        if len(heard) == 1:
            _tell("deploy", f"{number.name}: no further machine is begun; once more leaves all as they are")
        else:
            doing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, hear, number)
    try:
        return await doing
    except asyncio.CancelledError:
        _tell("deploy", "broken off: machines that were under way may be between two versions")
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy",
        description="Bring a version to the machines of an inventory: canaries first, each judged.",
    )
    parser.add_argument(
        "inventory", type=Path, help="a TOML file with the machines (deploy/inventory.example.toml)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--wheel", type=_wheel, metavar="FILE", help="the version to install")
    what.add_argument("--rollback", action="store_true", help="go back to what each machine had before")
    parser.add_argument(
        "--only", action="append", default=[], metavar="HOST", help="this machine; may be repeated"
    )
    parser.add_argument(
        "--all-or-nothing",
        action="store_true",
        help="if one fails, those that are upgraded already go back too",
    )
    parser.add_argument("--dry-run", action="store_true", help="look at every machine, and change nothing")
    parser.add_argument("--json", action="store_true", help="print one document instead of the table")
    return parser


def _wheel(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".whl" or not path.is_file():
        raise argparse.ArgumentTypeError(
            f"{text} is no wheel; pip wheel --no-deps --wheel-dir dist . makes one"
        )
    return path


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Say whether nobody else deploys with this inventory from here, and keep others from it."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _tell(name: str, line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}: {line}\n".translate(_CONTROL | {10: "\n"}))
    sys.stderr.flush()


def _row(report: rollout.Report) -> dict[str, object]:
    return {
        "name": report.host.name,
        "address": report.host.address,
        "units": report.host.units,
        "canary": report.canary,
        "state": report.state,
        "before": report.before,
        "said": report.said,
        "seconds": round(report.seconds, 1),
    }


def _table(reports: Sequence[rollout.Report], *, dry_run: bool) -> str:
    rows = [("host", "wave", "state", "took", "units", "said")]
    for report in reports:
        can = "can be deployed to" if report.state is rollout.State.UNTOUCHED else report.state
        rows.append(
            (
                report.host.name,
                "canary" if report.canary else "rest",
                can if dry_run else report.state,
                f"{report.seconds:.0f} s" if report.seconds else "",
                ", ".join(unit.removesuffix(".service") for unit in report.host.units),
                (report.said or report.before).translate(_CONTROL),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    sums = ", ".join(f"{count} {state}" for state, count in rollout.counted(reports).items())
    return "\n".join([*lines, "", sums, ""])


if __name__ == "__main__":
    sys.exit(main())
