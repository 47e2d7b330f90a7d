"""``python -m interp.jobs --store ROOT``: the worker process."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m interp.jobs", description="Serve the jobs of one store."
    )
    parser.add_argument("--store", default=None, help="the store's folder")
    parser.add_argument(
        "--models",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of model folders that may be opened (may be repeated)",
    )
    parser.add_argument(
        "--linger",
        type=float,
        default=300.0,
        help="seconds without apps and work after which it ends; 0 never ends",
    )
    said = parser.parse_args(argv)
    from interp.jobs import serve

    return serve(said.store, said.models, linger=said.linger or None)


if __name__ == "__main__":
    sys.exit(main())
