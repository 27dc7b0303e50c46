"""F27: a short campaign, so that CI finds a change that breaks an invariant. Long campaigns are run by hand."""

import os

import pytest

from tests.faults.campaign import run_campaign
from tests.faults.recipes import FakeTraining, RealTraining
from tests.postgres_server import MissingBinary


def campaign(recipe, seconds, **options):
    try:
        return run_campaign(recipe, seconds, **options)
    except MissingBinary as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.mark.timeout(280)
@pytest.mark.long
def test_random_faults_violate_no_invariant():
    """F27 (I1 to I10), with a fixed seed. `make faults` runs longer, with other seeds."""
    done = campaign(FakeTraining(), 35, workers=3, runs=12, seed=11)

    assert done.findings.violations == []
    assert done.findings.ended["completed"] >= 1
    assert sum(done.counts.values()) > 10


@pytest.mark.long
@pytest.mark.training
@pytest.mark.timeout(900)
def test_random_faults_damage_no_real_training():
    """F27 (I1 to I10), with trainings whose fitness drops: most epochs after a resume are not a new best."""
    done = campaign(RealTraining(), 100, workers=2, seed=11)

    assert done.findings.violations == [], done.findings.histories
    assert done.findings.ended["completed"] >= 1
    assert done.findings.curves.resumes >= 1
    assert done.findings.curves.new_bests < done.findings.curves.epochs
