"""The command line: run the service, and manage its queue. Each module contains the commands for one topic."""

from trainer.cli import service  # isort: skip - the options without a command come first
from trainer.cli import enqueue, runs, logs, host  # noqa: I001 - the order of --help
from trainer.cli.app import app
from trainer.streams import fill_standard_streams

__all__ = ["enqueue", "host", "logs", "main", "runs", "service"]


def main() -> None:
    """Run the command from the arguments of this process."""
    fill_standard_streams()
    app()
