"""The sandbox of the process that reads a dataset."""

from pathlib import Path

from trainer.datasets.confined.limits import _policy
from trainer.datasets.decoder import Access


def test_other_parts_of_a_root_are_not_needed_to_enter_the_sandbox():
    """A user can remove a folder beside the dataset at any time. Before, this caused a second attempt of the run."""
    access = Access(read=("/data/set", "/data/of another user"), names=("/data/set",), fill=("/made",))

    assert _policy(access).samples == (Path("/data/set"),)
