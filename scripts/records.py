"""Records of finished runs, packed into files small enough to keep: losses and settings, without checkpoints.

    python scripts/records.py pack runs --out results/records      # adds to what is packed there already
    python scripts/records.py unpack results/records --runs runs   # whatever is there already stays as it is

What is unpacked counts as run: plots, reports and `make reproduce` take it from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.errors import UserError
from experiments.runs.archive import pack, unpack


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and packs or unpacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="pack the records of finished runs")
    packing.add_argument("runs", type=Path, help="folder of run directories")
    packing.add_argument("--out", type=Path, required=True, help="folder of the archives")
    unpacking = commands.add_parser("unpack", help="make run directories of what is packed")
    unpacking.add_argument("archives", type=Path, help="folder of the archives")
    unpacking.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default %(default)s)")
    args = parser.parse_args(arguments)
    try:
        if args.command == "pack":
            for archive, count in pack(args.runs, args.out).items():
                print(f"{archive}: {count} runs, {archive.stat().st_size:,} bytes")
        else:
            made = unpack(args.archives, args.runs)
            print(f"{len(made)} unpacked below {args.runs}")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
