"""Names of files as keys of objects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.storage_server import GOOD_KEY
from trainer.core.names import local_name, storage_key

FILE_NAMES = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=()))
    .filter(
        # a lone surrogate stands for a byte that is no UTF-8; a file system gives no others
        lambda name: all(not "\ud800" <= letter <= "\udfff" or "\udc80" <= letter <= "\udcff" for letter in name),
    )
    .map(lambda name: name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
)
TRICKY = st.text(st.sampled_from("=3DAé%~/.\udcff"))


@given(st.one_of(FILE_NAMES, TRICKY))
def test_every_file_name_survives_the_way_there_and_back(name):
    assert local_name(storage_key(name)) == name


@given(FILE_NAMES.filter(bool))
def test_every_key_is_one_that_storage_takes(name):
    key = storage_key(name)
    assert GOOD_KEY.fullmatch(key)
    assert not {".", ".."} & set(key.split("/"))
    assert key.count("/") == name.count("/")


@given(st.lists(st.one_of(FILE_NAMES, TRICKY), unique=True))
def test_two_names_never_share_a_key(names):
    assert len({storage_key(name) for name in names}) == len(names)


def test_ordinary_names_stay_as_they_are():
    for name in ("best.pt", "images/train/0001 (copy).jpg", "a&b+c;d,e'f@g:h!i?j*.png", "lr=0.01.png", "x=ab"):
        assert storage_key(name) == name


def test_an_escape_is_the_bytes_of_utf_8():
    assert storage_key("naïve 日#.png") == "na=C3=AFve =E6=97=A5=23.png"
    assert storage_key("a=41") == "a=3D41"
    assert storage_key("../a") == "=2E=2E/a"
