"""`gridledger backup`: a copy of a node's data, taken while it runs."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from consortium.node.backup import RESTORE, back_up
from consortium.node.network import Network

from .output import Patience, answer


def add_commands(rooms: Any, common: argparse.ArgumentParser) -> None:
    """Register `backup`; `rooms` are the parser's sub-commands."""
    backup = rooms.add_parser(
        "backup",
        parents=[common],
        help="copy a node's data while it runs",
        description="Copies a consistent picture of a peer's, an orderer's or an authority's "
        f"folder, keys included, into a new folder. Its {RESTORE} says how to restore it.",
    )
    backup.add_argument("utility")
    backup.add_argument("kind", help="peer, orderer, ca, or peer1 and so on")
    backup.add_argument("destination", type=Path, help="a new folder")
    backup.set_defaults(run=_backup)


async def _backup(options: argparse.Namespace) -> None:
    utility = Network.load(options.data_dir).utility(options.utility)
    made = await asyncio.to_thread(
        back_up, utility.directory / options.kind, options.destination, Patience("backup")
    )
    copied = [f"{name} up to height {height}" for name, height in made.heights.items()]
    gone = f"Removed while it was being copied: {', '.join(made.gone)}.\n" if made.gone else ""
    answer(
        options,
        {
            "folder": str(made.folder),
            "heights": made.heights,
            "files": made.files,
            "bytes": made.bytes,
            "gone": list(made.gone),
        },
        f"{utility.name}'s {options.kind} is copied to {made.folder}: "
        + ", ".join([*copied, f"{made.files} files", f"{made.bytes / 1e6:.1f} MB"])
        + f".\n{gone}How to restore it: {made.folder / RESTORE}",
    )
