"""Untrusted files are decoded in a confined process: what hostile code in this process can do, and what its lies cause."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.dataset_painter import OnDisk, paint
from tests.process.sandbox_host import needs_landlock
from trainer.core.dataset import DatasetOrder
from trainer.core.errors import DatasetError, HostFailed, MachineFailed
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.confined.process import ConfinedDecoder
from trainer.datasets.decoder import Room, here
from trainer.datasets.images.facts_cache import FactsCache
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots

PROGRAMS = Path(__file__).parent / "programs"
FINGERPRINT = "0" * 64
RESULT = {
    "task": "detect",
    "names": ["a"],
    "images": {"train": 1, "val": 1},
    "fingerprint": FINGERPRINT,
    "findings": [],
    "summary": {},
    "drawn": 0,
}
FINDING = {"level": "note", "code": "coco_crowd", "message": "m", "count": 1, "examples": []}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.env").write_text("KEY=secret")
    (tmp_path / "roots").mkdir()
    return paint(tmp_path / "roots/set")


def decoder(*program, sandbox="required"):
    return ConfinedDecoder(environment=dict(os.environ), sandbox=sandbox, program=program)


def attacked(code, **options):
    """Return a decoder whose process executes `code` after it entered the sandbox."""
    return decoder(sys.executable, "-P", str(PROGRAMS / "attacking_dataset_process.py"), code, **options)


@pytest.fixture
def lying(tmp_path):
    """Return a function that makes a decoder without a sandbox.

    Its process executes `before`, prints these messages and executes `after`.
    """

    def make(*lines, before="pass", after="pass"):
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        program = tmp_path / "liar.py"
        program.write_text(
            "import json, os, sys, time\njob = json.loads(input())['arguments']\n"
            f"{before}\nprint({text!r}, end='', flush=True)\n{after}"
        )
        return decoder(sys.executable, str(program))

    return make


def prepare(data, decode, stop=None, sheet=None, run="run", **caches):
    folder = data.parents[2] / run
    datasets = FetchedDatasets(OnDisk(), ReferenceRules(Roots(data.parents[1]), "datasets"), decode=decode, **caches)
    order = DatasetOrder(sources=(str(data),))
    if sheet:
        return datasets.check(order, folder, stop or StopSignal(), lambda _: None, sheet)
    return datasets.prepare(order, folder, stop or StopSignal(), lambda _: None)


REFUSED = {
    "read the settings of the service": "open('{root}/home/.env').read()",
    "list a folder of the service": "import os; os.listdir('{root}/home')",
    "read files of the service through its process": "open('/proc/{pid}/environ').read()",
    "write outside of the view": "open('{root}/home/new', 'w')",
    "change the dataset": "open('{root}/roots/set/data.yaml', 'w')",
    "change the mode of the dataset": "import os; os.chmod('{root}/roots/set/data.yaml', 0o777)",
    "change the time of the dataset": "import os; os.utime('{root}/roots/set/data.yaml', (1, 1))",
    "link a file of the dataset": "import os; os.link('{root}/roots/set/data.yaml', job.view + '/hard')",
    "create a link for the service to follow": "import os; os.symlink('{root}/home/.env', job.made + '/sheet.png')",
    "create a pipe for the service to open": "import os; os.mkfifo(job.made + '/sheet.png')",
    "execute a program": "import subprocess; subprocess.run(['/bin/true'])",
    "start a process": "import os; os.fork() or os._exit(0)",
    "signal the service": "import os; os.kill({pid}, 0)",
    "change the limits of the service": "import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE, (3, 3))",
    "reserve disk space without writing": (
        "import os; os.posix_fallocate(os.open(job.view + '/x', os.O_CREAT | os.O_WRONLY), 0, 1 << 20)"
    ),
    "create a file in memory": "import os; os.memfd_create('x')",
    "open a TCP socket": "import socket; socket.socket()",
    "open a Unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "open a netlink socket": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "trace the service": (
        "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\n"
        "if c.ptrace(16, {pid}, 0, 0): raise OSError(ctypes.get_errno(), 'x')"
    ),
}


@needs_landlock
@pytest.mark.parametrize("case", REFUSED)
def test_code_in_dataset_process_cannot(data, case):
    code = REFUSED[case].format(root=data.parents[2], pid=os.getpid())
    with pytest.raises(DatasetError, match=r"PermissionError|OSError"):
        prepare(data, attacked(code))


@needs_landlock
def test_code_in_dataset_process_can_read_only_its_dataset(data):
    with pytest.raises(DatasetError, match="done"):
        prepare(data, attacked("import os; open(job.sources[0]['root'] + '/data.yaml').read()"))


@needs_landlock
def test_process_without_access_to_a_root_of_the_service_reads_datasets_beside_it(tmp_path):
    data = paint(tmp_path / "roots/set")
    private = tmp_path / "roots/.cache"
    private.mkdir()
    (private / "secret").write_text("x")
    roots = Roots(tmp_path / "roots", private=(private,))
    decode = attacked(f"open({str(private / 'secret')!r}).read()")
    datasets = FetchedDatasets(OnDisk(), ReferenceRules(roots, "datasets"), decode=decode)

    with pytest.raises(DatasetError, match="PermissionError"):
        datasets.prepare(DatasetOrder(sources=(str(data),)), tmp_path / "run", StopSignal(), lambda _: None)


LIES = {
    "no JSON": ["no\n"],
    "no object": ["[]\n"],
    "nested lists": ["[" * 10**6 + "\n"],
    "many values": ['{"result": [' + "[]," * 200_000 + "[]]}\n"],
    "message without an end": ["x" * (17 << 20)],
    "unknown message": ['{"upload": "/etc/passwd"}\n'],
    "unknown error": ['{"error": "SystemExit", "problems": ["x"]}\n'],
    "error without text": ['{"error": "DatasetError", "problems": [1]}\n'],
    "million problems": ['{"error": "DatasetError", "problems": [' + '"x",' * 10**5 + '"x"]}\n'],
    "result without values": ['{"result": {}}\n'],
    "result that is a list": ['{"result": []}\n'],
    "unknown task": [{"result": {**RESULT, "task": "hack"}}],
    "negative number of images": [{"result": {**RESULT, "images": {"train": -1}}}],
    "huge number of images": [{"result": {**RESULT, "images": {"train": 10**30}}}],
    "unknown split": [{"result": {**RESULT, "images": {"../x": 1}}}],
    "long name": [{"result": {**RESULT, "names": ["x" * 10**5]}}],
    "path as fingerprint": [{"result": {**RESULT, "fingerprint": "../" * 10}}],
    "path of 64 characters as fingerprint": [{"result": {**RESULT, "fingerprint": "../" * 21 + "x"}}],
    "nested summary": [
        json.dumps({"result": {**RESULT, "summary": "X"}}).replace('"X"', '{"a":' * 500 + "1" + "}" * 500) + "\n"
    ],
    "thousands of findings": [{"result": {**RESULT, "findings": [FINDING] * 2000}}],
    "missing protections twice": [{"missing": ["x"]}, {"missing": ["x"]}],
    "NaN in the summary": ['{"result": ' + json.dumps({**RESULT, "summary": {"a": float("nan")}}) + "}\n"],
    "huge summary": [{"result": {**RESULT, "summary": {"a": "x" * (2 << 20)}}}],
    "unknown finding": [{"result": {**RESULT, "findings": [{**FINDING, "code": "x"}]}}],
    "finding without text": [{"result": {**RESULT, "findings": [{**FINDING, "message": None}]}}],
    "room for -1 bytes": ['{"make_room": -1}\n'],
    "room twice": ['{"make_room": 1}\n{"make_room": 1}\n'],
    "view without a YAML": [{"result": RESULT}],
    "end without a message": [],
}


@pytest.mark.parametrize("case", LIES)
def test_invalid_answer_is_a_clear_failure_of_the_attempt(data, lying, case):
    with pytest.raises(MachineFailed, match=r"invalid answer|without a result"):
        prepare(data, lying(*LIES[case]))


def test_texts_of_dataset_process_can_be_stored_in_the_database(data, lying):
    with pytest.raises(DatasetError) as caught:
        prepare(data, lying({"error": "DatasetError", "problems": ["a\0\ud800"]}))
    assert str(caught.value) == "a\ufffd\ufffd"


def test_dataset_process_cannot_take_the_host_out_of_service(data, lying):
    message = {"error": "HostFailed", "problems": ["broken disk"]}
    with pytest.raises(MachineFailed) as caught:
        prepare(data, lying(message))
    assert not isinstance(caught.value, HostFailed)


NEVER_ANSWERS = {
    "sleep": "time.sleep(1000)",
    "endless loop": "[0 for _ in iter(int, 1)]",
    "endless output": "while True: os.write(2, b'x' * 65536)",
    "endless messages": "while True: print('{\"missing\": []}')",
}


@pytest.mark.parametrize("case", NEVER_ANSWERS)
def test_stop_ends_a_process_that_never_answers(data, lying, case):
    stop, decode = StopSignal(), lying(after=NEVER_ANSWERS[case])
    began = time.monotonic()

    with pytest.raises((Stopped, MachineFailed)):
        prepare(data, lambda job, stop: decode(job, stop, Room(check=lambda: stop.set(StopReason.CANCELED))), stop)

    assert time.monotonic() - began < 30


def test_killed_process_is_a_failure_of_the_host(data, lying):
    with pytest.raises(MachineFailed, match="ran out of memory"):
        prepare(data, lying(after="os.kill(os.getpid(), 9)"))


def test_memory_of_process_is_limited(data):
    code = "import resource; assert resource.getrlimit(resource.RLIMIT_AS) == (4 << 30, 4 << 30); bytearray(5 << 30)"
    with pytest.raises(DatasetError, match="more than 4 GiB of memory"):
        prepare(data, attacked(code))


EMPTY_YAML = "open(job['view'] + '/data.yaml', 'w').close(); "
PLANTED = {
    "YAML that is a link": "os.symlink('/etc/passwd', job['view'] + '/data.yaml')",
    "YAML that is a pipe": "os.mkfifo(job['view'] + '/data.yaml')",
    "list of images that is a pipe": EMPTY_YAML + "os.mkfifo(job['made'] + '/scaled-down.jsonl')",
    "list of images that is a link": EMPTY_YAML + "os.symlink('/dev/zero', job['made'] + '/scaled-down.jsonl')",
    "list of images without an end": EMPTY_YAML
    + "os.truncate(os.open(job['made'] + '/scaled-down.jsonl', 66, 420), 1 << 40)",
}


@pytest.mark.parametrize(
    "place", ["images/../../x", "images/train/a/b.jpg", "images/train/" + "a" * 300, "labels/a.txt"]
)
def test_unsafe_place_of_a_scaled_image_is_an_invalid_answer(data, lying, tmp_path, place):
    plant = f"open(job['made'] + '/scaled-down.jsonl', 'w').write(json.dumps([{place!r}, '/etc/passwd', False]))"
    pixels = PixelCache(ContentCache(tmp_path / "cache", max_bytes=1 << 30, reserve=0))
    with pytest.raises(MachineFailed, match="invalid answer"):
        prepare(data, lying({"result": RESULT}, before=EMPTY_YAML + plant), pixels=pixels)


@pytest.mark.parametrize("case", PLANTED)
def test_planted_file_is_not_followed(data, lying, tmp_path, case):
    pixels = PixelCache(ContentCache(tmp_path / "cache", max_bytes=1 << 30, reserve=0))
    with pytest.raises((MachineFailed, OSError)):
        prepare(data, lying({"result": RESULT}, before=PLANTED[case]), pixels=pixels)


@pytest.mark.parametrize("plant", ["os.mkfifo(sheet)", "os.symlink('/dev/zero', sheet)", "os.mkdir(sheet)"])
def test_planted_contact_sheet_is_not_followed(data, lying, tmp_path, plant):
    decode = lying({"result": RESULT}, before=f"sheet = job['made'] + '/sheet.png'; {plant}")
    with pytest.raises((MachineFailed, OSError)):
        prepare(data, decode, sheet=tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("plant", ["os.mkfifo(facts)", "os.symlink('/etc/passwd', facts)", "os.mkdir(facts)"])
def test_planted_facts_are_not_kept(data, lying, tmp_path, plant):
    facts = FactsCache(tmp_path / "facts")
    prepare(data, here, facts=facts)
    (known,) = (tmp_path / "facts").iterdir()
    content = known.read_bytes()
    find = "facts = job['made'] + '/facts/' + os.listdir(job['made'] + '/facts')[0]; os.unlink(facts); "
    decode = lying({"result": RESULT}, before=f"{EMPTY_YAML}{find}{plant}")

    prepare(data, decode, facts=facts, run="second")

    assert known.is_file()
    assert not known.is_symlink()
    assert known.read_bytes() == content
