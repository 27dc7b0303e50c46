"""A healthy host for the tests of `doctor`, with a fake torch. A test can change this host."""

from trainer import doctor, host

TORCH = """
class version:
    cuda = "13.0"
class cuda:
    device_count = staticmethod(lambda: {gpus})
    get_device_name = staticmethod(lambda index: "NVIDIA H200")
    get_device_properties = staticmethod(lambda index: type("Properties", (), dict(total_memory=139 * 2**30)))
__version__ = "2.15.0"
"""


GPU = host.Gpu(index=0, name="NVIDIA H200", memory=139 * 2**30, driver="580.1")


class HostUnderTest:
    """A healthy host with a fake torch. A test can change this host."""

    def __init__(self, home, monkeypatch):
        self.home = home
        self.monkeypatch = monkeypatch
        self.set(BACKEND="local", TRAINER_HOME=home, PYTHONPATH=home.parent / "packages")
        (home.parent / "packages").mkdir()
        self.torch(TORCH.format(gpus=0))
        monkeypatch.setattr(host, "gpus", lambda: ())

    def set(self, **environment):
        for name, value in environment.items():
            self.monkeypatch.setenv(name, str(value))

    def torch(self, source):
        (self.home.parent / "packages" / "torch.py").write_text(source)

    def findings(self, state="fault"):
        return [check for check in doctor.examine() if check.state == state]

    def fault(self):
        """Return the only fault."""
        (found,) = self.findings()
        return found
