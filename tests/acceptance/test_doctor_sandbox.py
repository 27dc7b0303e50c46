"""`doctor` and the self-test of the service tell what this kernel does not offer for the sandbox."""

import errno

import pytest

from tests.acceptance.host_under_test import GPU
from trainer import host
from trainer.sandbox import landlock, private_network, support
from trainer.settings import Settings
from trainer.wiring.host import build_self_test


@pytest.fixture
def kernel(monkeypatch):
    """Let this kernel answer with a version of Landlock, or fail with an error. It always has seccomp."""

    def answer(version=7, error=None):
        def landlock_version():
            if error:
                kind = landlock.SandboxUnavailable if error in (errno.ENOSYS, errno.EOPNOTSUPP) else OSError
                raise kind(error, "cannot be used")
            return version

        monkeypatch.setattr(support, "landlock_version", landlock_version)
        monkeypatch.setattr(support, "require_seccomp", lambda: None)

    return answer


def sandbox(a_host, state):
    return [check.message for check in a_host.findings(state) if check.name == "sandbox"]


def test_complete_sandbox_is_reported_as_ok(a_host, kernel):
    kernel()

    assert sandbox(a_host, "ok") == ["Landlock 7, seccomp, SANDBOX=auto"]


@pytest.mark.parametrize(
    ("setting", "version", "error", "state", "expected"),
    [
        ("auto", 7, errno.ENOSYS, "warning", "no Landlock: runs continue without it"),
        ("required", 7, errno.EOPNOTSUPP, "fault", "SANDBOX=required, but this kernel has no Landlock"),
        ("auto", 7, errno.EPERM, "fault", "this host forbids the sandbox"),
        ("required", 5, None, "warning", "does not restrict signals"),
        ("0", 7, None, "warning", "SANDBOX=0"),
    ],
)
def test_incomplete_sandbox_is_reported(a_host, kernel, setting, version, error, state, expected):
    kernel(version, error)
    a_host.set(SANDBOX=setting)

    (message,) = sandbox(a_host, state)

    assert expected in message


def test_forbidden_user_namespaces_are_reported_on_hosts_with_several_gpus(a_host, kernel, monkeypatch):
    kernel()
    monkeypatch.setattr(host, "gpus", lambda: (GPU, GPU))
    monkeypatch.setattr(private_network, "is_available", lambda: False)
    a_host.set(SANDBOX="required")

    assert "runs on several GPUs fail" in sandbox(a_host, "warning")[0]


def test_failure_to_create_a_network_is_a_fault(a_host, kernel, monkeypatch):
    def fail():
        raise OSError("no space left on device")

    kernel()
    monkeypatch.setattr(host, "gpus", lambda: (GPU, GPU))
    monkeypatch.setattr(private_network, "is_available", fail)

    assert "no space left" in sandbox(a_host, "fault")[0]


@pytest.mark.parametrize(
    ("setting", "error", "claims_runs"),
    [("auto", errno.ENOSYS, True), ("required", errno.ENOSYS, False), ("auto", errno.EPERM, False), ("0", errno.EPERM, True)],
)  # fmt: skip
def test_service_claims_no_runs_if_no_training_could_start(tmp_path, kernel, setting, error, claims_runs):
    kernel(error=error)

    problem = build_self_test(Settings(trainer_home=tmp_path, sandbox=setting))()

    assert (problem is None) == claims_runs
    assert claims_runs or "SANDBOX" in problem
