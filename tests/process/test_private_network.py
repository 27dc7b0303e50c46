"""A program in a network of its own, and the trainings that get one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.process.other_user import OTHER_USER, PYTHON, as_user, needs_other_user, readable_folder
from trainer.sandbox import private_network
from trainer.sandbox.private_network import PRIVATE_NETWORK

FACTS = """
import ctypes, json, os, socket
signal = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
print(json.dumps({
    "variables": {name: value for name, value in os.environ.items() if name.endswith(("IFNAME", "NETWORK"))},
    "interfaces": [name for _, name in socket.if_nameindex()], "user": os.getuid(), "group": os.getgid(),
    "signal": signal.value,
}))
"""


@pytest.fixture
def place():
    """Return a folder that other users can read."""
    with readable_folder() as folder:
        shutil.copy(private_network.__file__, folder / "private_network.py")
        (folder / "facts.py").write_text(FACTS)
        for path in folder.iterdir():
            path.chmod(0o644)
        yield folder


@needs_other_user
@pytest.mark.parametrize("user", [0, OTHER_USER])
def test_program_has_only_its_own_loopback_and_stays_the_same_user(place, user):
    command = [*as_user(user), "--pdeathsig=KILL"]
    command += ["--no-new-privs"] if user else []
    program = [PYTHON, "-I", "-S", str(place / "private_network.py"), PYTHON, str(place / "facts.py")]
    done = subprocess.run([*command, *program], stdout=subprocess.PIPE, check=True, env={})

    assert json.loads(done.stdout) == {
        "variables": {PRIVATE_NETWORK: "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"},
        "interfaces": ["lo"], "user": user, "group": user, "signal": 9,
    }  # fmt: skip


@needs_other_user
def test_program_starts_in_network_of_host_if_namespaces_are_forbidden(place):
    """No namespace can be created, as in some containers."""
    shell = f"echo 0 > /proc/sys/user/max_net_namespaces; exec {PYTHON} -I -S {place}/private_network.py {PYTHON} "
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", f"{shell} -c 'import os; print(os.environ)'"],
        stdout=subprocess.PIPE, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip

    assert b"PATH" in done.stdout
    assert PRIVATE_NETWORK.encode() not in done.stdout


def test_training_on_several_gpus_has_its_own_network(program):
    training = program("reports_its_environment", warm_start=True)
    training.trainer.warm()

    def network(devices):
        return training.train(devices=devices).report["environment"]["environment"].get(PRIVATE_NETWORK)

    assert [network(()), network((0,)), network((0, 1))] == [None, None, "1"]
    training.trainer.sandbox = "0"
    assert network((0, 1)) is None


def test_prestarted_training_has_its_own_network_on_hosts_with_several_gpus(program):
    training = program("reports_its_environment", warm_start=True)
    training.trainer.private_network = True
    training.trainer.warm()

    environment = training.train(devices=(0,)).report["environment"]["environment"]

    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert environment[PRIVATE_NETWORK] == "1"
