"""F27: a short campaign, so that a change that breaks an invariant is noticed in CI; long ones are run by hand."""

import os

import pytest

from tests.faults.campaign import run_campaign
from tests.faults.recipes import RealTraining, StandIn
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
def test_random_faults_violate_nothing():
    """F27 (I1 to I10): the seed is fixed; `make faults` takes longer, with others."""
    done = campaign(StandIn(), 35, workers=3, runs=12, seed=11)

    assert done.findings.violations == []
    assert done.findings.ended["completed"] >= 1
    assert sum(done.counts.values()) > 10


@pytest.mark.long
@pytest.mark.training
@pytest.mark.timeout(900)
def test_random_faults_cost_no_real_training():
    """F27 (I1 to I10), with trainings that get worse: most resumes are followed by an epoch that is no new best."""
    done = campaign(RealTraining(), 100, workers=2, seed=11)

    assert done.findings.violations == [], done.findings.stories
    assert done.findings.ended["completed"] >= 1
    assert done.findings.curves.resumes >= 1
    assert done.findings.curves.new_bests < done.findings.curves.epochs
