"""The command line: run the service, and manage its queue. Each module contains the commands for one topic."""

import os

from trainer.cli import service  # isort: skip - the options without a command come first
from trainer.cli import enqueue, runs, logs, host  # noqa: I001 - the order of --help
from trainer.cli.app import app
from trainer.streams import fill_standard_streams

__all__ = ["enqueue", "host", "logs", "main", "runs", "service"]


def main() -> None:
    """Run the command from the arguments of this process."""
    fill_standard_streams()
    _keep_files_private()
    app()


def _keep_files_private() -> None:
    """Deny other users the files that this process and its children create, unless the umask already does.

    A group keeps its access if the operator gives it with a umask such as 0027 or 0007.
    """
    denies_others = 0o007
    umask = os.umask(0o077)
    if umask & denies_others == denies_others:
        os.umask(umask)
