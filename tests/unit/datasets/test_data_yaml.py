"""Parsing and interpretation of an untrusted data.yaml."""

from __future__ import annotations

import pytest

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.datasets.data_yaml import load_yaml, read_data_yaml
from trainer.datasets.findings import Report


def read(values):
    report = Report()
    return read_data_yaml(values, report), {finding.code: finding.level for finding in report.findings}


def loaded(tmp_path, data):
    path = tmp_path / "data.yaml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    report = Report()
    return load_yaml(path, report), {finding.code for finding in report.findings}


def test_scalars_are_read_as_text(tmp_path):
    values, codes = loaded(tmp_path, "names: [no, on, 1e3, 0x10, ~, 2024-01-01]\n")

    assert values == {"names": ["no", "on", "1e3", "0x10", "~", "2024-01-01"]}
    assert not codes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_encodings_are_read(tmp_path, encoding):
    assert loaded(tmp_path, "names: [café]\n".encode(encoding)) == ({"names": ["café"]}, set())


def test_other_encoding_is_read_as_windows_1252_with_warning(tmp_path):
    assert loaded(tmp_path, "names: [café]\n".encode("cp1252")) == ({"names": ["café"]}, {"yaml_encoding"})


def test_tabs_are_read_as_spaces_with_warning(tmp_path):
    assert loaded(tmp_path, "names:\n\t0: cat\n\t1: dog\n") == ({"names": {"0": "cat", "1": "dog"}}, {"yaml_tabs"})


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("", "must be a mapping"),
        ("names: [a\n", "not valid YAML: line 2"),
        ("a: &x [1]\nb: *x\n", "uses YAML aliases"),
        ("a: " + "[" * 20 + "]" * 20, "nested too deeply"),
        ("? [a, b]\n: c\n", "found unhashable key"),
        ("a: b\x00c\n", "not valid YAML"),
    ],
)
def test_invalid_yaml_is_rejected_with_reason(tmp_path, text, sign):
    with pytest.raises(DatasetError, match=sign):
        loaded(tmp_path, text)


@pytest.mark.parametrize(
    ("value", "names", "ids"),
    [
        (["a\ud800", "b"], ("a\ufffd", "b"), (0, 1)),
        (["cat", "dog"], ("cat", "dog"), (0, 1)),
        ({"1": "dog", "0": "cat"}, ("cat", "dog"), (0, 1)),
        ({"7": "cat", "3": "dog"}, ("dog", "cat"), (3, 7)),
        ("cat, dog", ("cat", "dog"), (0, 1)),
        ("['cat']", ("'cat'",), (0,)),
        (["  a\n b ", ""], ("a b", "class1"), (0, 1)),
        ([], None, None),
        (None, None, None),
    ],
)
def test_class_names_are_read_from_list_mapping_or_text(value, names, ids):
    data, codes = read({"names": value})

    assert (data.names, data.ids) == (names, ids)
    assert not codes


@pytest.mark.parametrize(
    "value",
    [{"a": "cat"}, {"-1": "cat"}, [["cat"]], {"0": "cat", "00": "dog"}, ["x" * 201], [str(n) for n in range(20_001)]],
)
def test_invalid_class_names_are_an_error(value):
    assert read({"names": value})[1] == {"yaml_names": "error"}


@pytest.mark.parametrize(
    ("nc", "count", "codes"),
    [("2", 2, {}), (None, None, {}), ("3", 3, {"yaml_nc": "warning"}), ("two", None, {"yaml_nc": "warning"}),
     ("0", None, {"yaml_nc": "warning"})],
)  # fmt: skip
def test_wrong_nc_is_a_warning_and_does_not_change_names(nc, count, codes):
    data, found = read({"names": ["a", "b"], "nc": nc})

    assert (data.nc, data.names, found) == (count, ("a", "b"), codes)


def test_splits_are_read_from_text_or_list_and_other_types_are_errors():
    data, codes = read({"train": ["a", " b "], "valid": "c", "test": ""})

    assert data.splits == {"train": ("a", "b"), "val": ("c",)}
    assert not codes
    assert read({"train": {"a": "b"}})[1] == {"yaml_train": "error"}
    assert read({"train": ["a", ["b"]]})[1] == {"yaml_train": "error"}


def test_invalid_kpt_shape_and_flip_idx_are_errors():
    data, codes = read({"kpt_shape": ["3", "2"], "flip_idx": ["0", "2", "1"]})

    assert (data.kpt_shape, data.flip_idx, codes) == ((3, 2), (0, 2, 1), {})
    for shape in (["3"], ["0", "3"], ["3", "4"], ["2000", "3"]):
        assert read({"kpt_shape": shape})[1] == {"kpt_shape": "error"}
    assert read({"kpt_shape": "17"})[1] == {"kpt_shape": "error"}
    for flip in (["0", "1"], ["0", "1", "1"]):
        assert read({"kpt_shape": ["3", "2"], "flip_idx": flip})[1] == {"flip_idx": "error"}
    assert read({"flip_idx": ["0"]})[1] == {"flip_idx": "error"}


def test_task_is_read_if_present():
    assert read({"task": "segment"})[0].task is Task.SEGMENT
    assert read({})[0].task is None


def test_unknown_keys_are_ignored():
    data, codes = read({"download": "rm -rf /", "path": " sets/a ", "train": "t", "yaml_file": "x", "minival": "m"})

    assert (data.path, data.splits, codes) == ("sets/a", {"train": ("t",)}, {})
