"""The store router: each call goes to the store that the reference names."""

import pytest

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest
from trainer.core.stop import StopSignal
from trainer.storage.local import LocalObjectStore
from trainer.storage.router import StoreRouter


class OtherStore(LocalObjectStore):
    name = "other"


@pytest.fixture
def router(tmp_path):
    return StoreRouter(
        {"local": LocalObjectStore(tmp_path / "local"), "other": OtherStore(tmp_path / "other")}, default="local"
    )


def upload(router, tmp_path, store, content):
    (tmp_path / "file").write_bytes(content)
    return router.upload(tmp_path / "file", ObjectRef(store=store, bucket="b", key="k"), StopSignal()).ref


def test_reference_is_routed_to_its_store(router, tmp_path):
    refs = [upload(router, tmp_path, store, content) for store, content in (("", b"1"), ("other", b"22"))]

    assert [ref.store for ref in refs] == ["local", "other"]
    assert [router.stat(ref).bytes for ref in refs] == [1, 2]
    assert [next(router.list(ObjectRef(store=ref.store, bucket="b", key=""))).ref for ref in refs] == refs
    assert (tmp_path / "other" / "b" / "k").read_bytes() == b"22"
    router.delete(refs[0])
    assert router.stat(refs[1]).bytes == 2


def test_unknown_store_is_rejected_with_list_of_stores(router):
    with pytest.raises(BadRequest, match="no store 's3'; use one of local, other"):
        router.stat(ObjectRef(store="s3", bucket="b", key="k"))
