"""A row cannot name objects of other buckets or, if the operator wants it, of other owners."""

from __future__ import annotations

import pytest

from tests.dataset_painter import paint
from tests.hostile.dataset_service import prepared, service, settings_in
from tests.hostile.references import parse
from tests.web_server import body, redirect, web_server
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, DatasetError
from trainer.core.stop import StopSignal
from trainer.wiring.datasets import reference_rules, web_client

ALICE, BOB = "11111111-aaaa-4aaa-8aaa-111111111111", "22222222-bbbb-4bbb-8bbb-222222222222"
OURS = "http://127.0.0.1:{port}"


# ── buckets ──


@pytest.mark.parametrize(
    "bucket", ["kyc-documents", "training-artifacts", "Datasets", "datasets%2F", "%64atasets2", "%2e%2e"]
)
@pytest.mark.parametrize(
    "kind", ["object/public", "object/sign", "object/authenticated", "object", "render/image/public"]
)
def test_url_of_own_storage_cannot_name_another_bucket(tmp_path, bucket, kind):
    with pytest.raises(DatasetError, match="ALLOWED_BUCKETS"):
        parse(f"https://abc.supabase.co/storage/v1/{kind}/{bucket}/x/data.yaml?token=t", tmp_path)


@pytest.mark.parametrize("bucket", ["kyc-documents", "training-artifacts"])
def test_storage_reference_cannot_name_another_bucket(tmp_path, bucket):
    """The dataset exists in the other bucket. Only the datasets bucket is searched."""
    paint(tmp_path / "home/storage" / bucket / "x")
    refused = pytest.raises(BadRequest, match=f"no '{bucket}/x' in bucket 'datasets'. .*ALLOWED_BUCKETS")
    with service(settings_in(tmp_path)) as datasets, refused:
        prepared(datasets, f"storage:{bucket}/x")


def test_fetcher_itself_refuses_other_buckets(tmp_path):
    """The check does not rely on the parser of references."""
    ref = ObjectRef(bucket="kyc", key="x")
    with service(settings_in(tmp_path)) as datasets, pytest.raises(DatasetError, match="ALLOWED_BUCKETS"):
        datasets.fetcher.fetch(ref, tmp_path / "home/datasets/run", StopSignal(), lambda _: None)


@pytest.mark.parametrize("allowed", [("training-artifacts",), ("a", "training-artifacts")])
def test_artifacts_bucket_cannot_be_an_allowed_bucket(tmp_path, allowed):
    with pytest.raises(ValueError, match="cannot contain both artifacts and datasets"):
        settings_in(tmp_path, allowed_buckets=allowed)
    with pytest.raises(ValueError, match="cannot contain both artifacts and datasets"):
        settings_in(tmp_path, supabase_datasets_bucket="training-artifacts")


OWN_PATHS = [
    "/storage/v1/object/public/kyc/x.jpg", "/storage/v1/object/sign/training-artifacts/x.jpg?token=t", "/rest/v1/training_runs",
    "/storage/v1/object/public/datasets/../kyc/x.jpg", "/storage/v1/object/public/datasets/%2e%2e/kyc/x.jpg", "/x.jpg",
    "/storage/v1/object/public/datasets/%252e%252e/kyc/x.jpg", "//storage/v1/object/public/kyc/x.jpg", "/pg/query",
    "/storage/v1/object/info/public/datasets/x.jpg", "/storage/v1/object/public//kyc/x.jpg", "/STORAGE/v1/object/public/datasets/x.jpg",
    "/storage/v1/s3/kyc/x.jpg", "/storage/v1/object/list/kyc/x.jpg",
]  # fmt: skip


@pytest.mark.parametrize("path", OWN_PATHS)
def test_no_url_and_no_redirect_reaches_anything_else_on_the_host_of_our_storage(tmp_path, path):
    """The host of our storage can be in a private network, so it answers requests that the user could not send."""
    with web_server() as server:
        own = OURS.format(port=server.port)
        server.pages[path.partition("?")[0]] = body(b"secret")
        server.pages["/storage/v1/object/public/datasets/away"] = redirect(f"{own}{path}")
        settings = settings_in(tmp_path, supabase_url=own)
        client = web_client(settings, reference_rules(settings))
        for url in (f"{own}{path}", f"{own}/storage/v1/object/public/datasets/away"):
            with pytest.raises(DatasetError, match="ALLOWED_BUCKETS"):
                client.download(url, tmp_path / "x", StopSignal())
        client.close()
        assert set(server.asked) <= {"/storage/v1/object/public/datasets/away"}


def test_object_of_the_datasets_bucket_can_be_downloaded_by_url(tmp_path):
    with web_server() as server:
        own = OURS.format(port=server.port)
        server.pages["/storage/v1/object/sign/datasets/a%20b/1.jpg?token=t"] = body(b"image")
        server.pages["/storage/v1/object/sign/datasets/a%20b/1.jpg"] = body(b"image")
        settings = settings_in(tmp_path, supabase_url=own)
        client = web_client(settings, reference_rules(settings))
        url = f"{own}/storage/v1/object/sign/datasets/a b/1.jpg?token=t"
        assert client.download(url, tmp_path / "x", StopSignal()).bytes == 5
        client.close()


# ── datasets of other owners ──

FOREIGN = [
    f"storage:{BOB}/set", f"storage:datasets/{BOB}/set", "storage:set", f"storage:x/{ALICE}/set", "storage:data.yaml",
    f"storage:more/{BOB}/set", f"https://abc.supabase.co/storage/v1/object/public/datasets/{BOB}/set/data.yaml",
    f"https://abc.supabase.co/storage/v1/object/public/more/x/{ALICE}/data.yaml", f"storage:{ALICE.upper()}/set", f"storage:{ALICE}x/set",
    f"storage:{ALICE}", f"storage:datasets/{ALICE}/", f"https://abc.supabase.co/storage/v1/object/public/datasets/{ALICE}",
]  # fmt: skip


@pytest.mark.parametrize("reference", FOREIGN)
def test_key_outside_the_folder_of_the_owner_is_rejected(tmp_path, reference):
    with pytest.raises(DatasetError, match="is not in the folder of the owner"):
        parse(reference, tmp_path, allowed_buckets=("more",), by_owner=True, owner=ALICE)


@pytest.mark.parametrize(
    ("reference", "bucket"),
    [
        (f"storage:{ALICE}/set", "datasets"),
        (f"storage:datasets/{ALICE}/set", "datasets"),
        (f"storage:more/{ALICE}/set", "more"),
        (f"https://abc.supabase.co/storage/v1/object/sign/more/{ALICE}/set?token=t", "more"),
    ],
)
def test_key_in_the_folder_of_the_owner_is_accepted(tmp_path, reference, bucket):
    found = parse(reference, tmp_path, allowed_buckets=("more",), by_owner=True, owner=ALICE)

    assert found == ObjectRef(bucket=bucket, key=f"{ALICE}/set")


@pytest.mark.parametrize("created_by", [None, "", ".", "..", f"{BOB}/x", "a/../b"])
def test_row_without_a_usable_owner_names_no_stored_dataset(tmp_path, created_by):
    with pytest.raises(DatasetError, match="DATASETS_BY_OWNER=0"):
        parse("storage:set", tmp_path, by_owner=True, owner=created_by)
    for other in ("/data/set", "https://example.org/set.zip"):
        assert parse(other, tmp_path, by_owner=True, owner=created_by)


def test_owner_with_the_name_of_a_bucket_reaches_no_other_folder(tmp_path):
    """`storage:more/bob/set` of the owner `more` names the folder `more` in the datasets bucket, never the bucket `more`."""
    settings = settings_in(tmp_path, datasets_by_owner=True, allowed_buckets=("more",))
    for folder in ("more/bob/set", "datasets/bob/set"):
        paint(tmp_path / "home/storage" / folder)
    with service(settings) as datasets:
        assert prepared(datasets, "storage:bob/set", owner="bob").images
        with pytest.raises(BadRequest, match="no 'more/bob/set' in bucket 'datasets'"):
            prepared(datasets, "storage:more/bob/set", owner="more")


def test_object_with_the_name_of_the_owners_folder_reaches_no_other_folder(tmp_path):
    """The storage policy of the docs lets Alice upload such an object. As a YAML, it is at the top level of the bucket."""
    paint(tmp_path / "home/storage/datasets" / BOB)
    splits = f"train: {BOB}/images/train\nval: {BOB}/images/val\nnames: [square, disc]\n"
    (tmp_path / "home/storage/datasets" / ALICE).write_text(splits)
    refused = pytest.raises(DatasetError, match="is not in the folder of the owner")
    with service(settings_in(tmp_path, datasets_by_owner=True)) as datasets, refused:
        prepared(datasets, f"storage:{ALICE}", owner=ALICE)
