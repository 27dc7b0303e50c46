"""The command line: run the service, and manage its queue. Each module holds the commands for one noun."""

from trainer.cli import service  # isort: skip - the options without a command come first
from trainer.cli import enqueue, schema, runs, logs, weights, dataset, host, demo  # noqa: I001 - the order of --help
from trainer.cli.app import app
from trainer.streams import fill_standard_streams

__all__ = ["dataset", "demo", "enqueue", "host", "logs", "main", "runs", "schema", "service", "weights"]


def main() -> None:
    """Run the command that the arguments of this process name."""
    fill_standard_streams()
    app()
