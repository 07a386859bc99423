"""The command line (extra `cli`)."""

from jaxburst.cli.commands import main

__all__ = ["main"]
