"""Floor 8: the command line. Every command stands in ``commands.py``; this is the door."""

from interp.cli.commands import app, main

__all__ = ["app", "main"]
