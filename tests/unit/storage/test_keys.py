"""File names are escaped to valid object keys."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tests.storage_routes import GOOD_KEY
from trainer.storage.keys import escaped_key

FILE_NAMES = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=()))
    .filter(
        # Python reads a byte of a file name that is not UTF-8 as a lone surrogate from \udc80 to \udcff
        lambda name: all(not "\ud800" <= letter <= "\udfff" or "\udc80" <= letter <= "\udcff" for letter in name),
    )
    .map(lambda name: name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
)
TRICKY = st.text(st.sampled_from("=3DAé%~/.\udcff"))


def unescaped(key):
    raw = re.sub("=([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), key)
    return raw.encode("latin-1").decode("utf-8", "surrogateescape")


@given(st.one_of(FILE_NAMES, TRICKY))
def test_escape_can_be_undone_for_every_file_name(name):
    assert unescaped(escaped_key(name)) == name


@given(FILE_NAMES.filter(bool))
def test_storage_accepts_every_escaped_key(name):
    key = escaped_key(name)
    assert GOOD_KEY.fullmatch(key)
    assert not {".", ".."} & set(key.split("/"))
    assert key.count("/") == name.count("/")


@given(st.lists(st.one_of(FILE_NAMES, TRICKY), unique=True))
def test_different_names_have_different_keys(names):
    assert len({escaped_key(name) for name in names}) == len(names)


def test_ordinary_names_are_not_escaped():
    for name in ("best.pt", "images/train/0001 (copy).jpg", "a&b+c;d,e'f@g:h!i?j*.png", "lr=0.01.png", "x=ab"):
        assert escaped_key(name) == name


def test_escaped_characters_are_utf_8_bytes():
    assert escaped_key("naïve 日#.png") == "na=C3=AFve =E6=97=A5=23.png"
    assert escaped_key("a=41") == "a=3D41"
    assert escaped_key("../a") == "=2E=2E/a"
