"""Uploads to the Supabase store: rejections, content types and memory use."""

from __future__ import annotations

import pytest

from tests.unit.storage.files_and_objects import (
    MIB,
    REF,
    in_another_process,
    source_file,
)
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, Misconfigured
from trainer.core.stop import StopSignal


@pytest.mark.parametrize("size", [3 * MIB, 8 * MIB])
def test_upload_over_limit_reports_size_and_advice(server, store, tmp_path, size):
    path, _ = source_file(tmp_path, size)
    server.limit = 2 * MIB
    with pytest.raises(Misconfigured, match=rf"'runs/1/best\.pt' \({size / 1e6:.1f} MB\).*project"):
        store.upload(path, REF, StopSignal())


def test_error_of_too_large_upload_has_limit_of_bucket(server, store, tmp_path):
    path, _ = source_file(tmp_path, 3 * MIB)
    server.buckets["data"].file_size_limit = 2 * MIB
    with pytest.raises(Misconfigured, match=r"the bucket's limit is 2\.1 MB"):
        store.upload(path, REF, StopSignal())


@pytest.mark.parametrize("size", [10, 7 * MIB])
@pytest.mark.parametrize(("setup", "error", "words"), [
    ("bucket", Misconfigured, "bucket 'data' does not exist: create it"),
    ("mime", Misconfigured, "allowed MIME types"),
    ("anon", Misconfigured, "check the key"),
    ("name", BadRequest, "storage rejects the object name"),
])  # fmt: skip
def test_rejected_upload_has_advice(server, make_store, tmp_path, size, setup, error, words):
    path, _ = source_file(tmp_path, size)
    ref, key = REF, "service-key"
    match setup:
        case "bucket":
            server.buckets.pop("data")
        case "mime":
            server.buckets["data"].mime_types = ["image/png"]
        case "anon":
            key = "anon-key"
        case "name":
            ref = ObjectRef(bucket="data", key="naïve#.pt")
    with pytest.raises(error, match=words):
        make_store(key).upload(path, ref, StopSignal())


@pytest.mark.parametrize(("name", "mime"), [
    ("best.pt", "application/octet-stream"), ("results.csv", "text/csv"), ("a.PNG", "image/png"), ("l.jpg", "image/jpeg"),
    ("manifest.json", "application/json"), ("args.yaml", "application/yaml"), ("train.log", "text/plain"),
    ("best.onnx", "application/octet-stream"), ("no-suffix", "application/octet-stream"),
])  # fmt: skip
def test_every_kind_of_artifact_has_its_content_type(server, store, tmp_path, name, mime):
    (tmp_path / name).write_bytes(b"1")
    store.upload(tmp_path / name, ObjectRef(bucket="data", key=name), StopSignal())
    assert server.objects["data"][name].mime == mime


def test_requested_content_type_is_used_for_small_and_large_uploads(server, store, tmp_path):
    for size in (10, 7 * MIB):
        path, _ = source_file(tmp_path, size)
        store.upload(path, REF, StopSignal(), content_type="image/png")
        assert server.objects["data"][REF.key].mime == "image/png"


def test_memory_does_not_grow_with_file_size(server, tmp_path):
    source_file(tmp_path, 96 * MIB)
    (tmp_path / "small").write_bytes(bytes(13 * MIB))
    statements = """
def peak_after(name):
    store.upload(folder / name, ref, StopSignal())
    store.download(ref, folder / "back", StopSignal())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(-peak_after("small") + peak_after("best.pt"))
"""
    with in_another_process(server, tmp_path, statements) as process:
        assert process.stdout
        grown = int(process.stdout.read())
    assert (tmp_path / "back").read_bytes() == (tmp_path / "best.pt").read_bytes()
    assert grown < 10  # MiB
