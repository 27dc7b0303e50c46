"""Hostile dataset YAML files and labels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hostile.damaged_dataset import (
    USUAL,
    run,
    with_label,
    with_yaml,
)


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return USUAL + "\n".join(lines) + f"\nnames: *a{levels - 1}\n"


TOUCH = "open('/tmp/hostile-was-here', 'w')"

# case → (YAML, start or part of the error; "ok" for a harmless one)
YAMLS = {
    "download script in python": (USUAL + f"names: [a]\ndownload: |\n  {TOUCH}\n", "ok"),
    "download script in bash": (USUAL + "names: [a]\ndownload: bash -c 'touch /tmp/hostile-was-here'\n", "ok"),
    "download from a url": (USUAL + "names: [a]\ndownload: http://169.254.169.254/latest/meta-data\n", "ok"),
    "download script and a val that is missing": (
        f"train: images/train\nval: images/none\nnames: [a]\ndownload: {TOUCH}\n",
        "no val split",
    ),
    "python object tag": (USUAL + "names: !!python/object/apply:os.system ['touch /tmp/hostile-was-here']\n", "ok"),
    "python name tag on a key": (USUAL + "!!python/name:os.system names: [a]\n", "ok"),
    "python module tag as path": (USUAL + "names: [a]\npath: !!python/module:os .\n", "ok"),
    "unknown tag": (USUAL + "names: !x/y [a]\n", "ok"),
    "binary tag": (USUAL + "names: [!!binary aGVsbG8=]\n", "ok"),
    "alias": (USUAL + "names: &x [a, b]\nother: *x\n", "aliases"),
    "alias bomb": (bomb(), "aliases"),
    "merge key": (USUAL + "base: &b {names: [a]}\n<<: *b\n", "aliases"),
    "an alias to itself": (USUAL + "names: &x [*x]\n", "aliases"),
    "deep brackets": (USUAL + "names: " + "[" * 50_000, "nested too deeply"),
    "deep mappings": (USUAL + "names: " + "{a: " * 50_000, "nested too deeply"),
    "deep indentation": ("\n".join(" " * n + "a:" for n in range(2000)), "nested too deeply"),
    "many values": (USUAL + "names: [" + "a," * 600_000 + "]", "too many values"),
    "too large": (b"#" * (5 << 20), "larger than 4 MiB"),
    "a hundred megabytes in one line": (b"names: " + b"a" * (100 << 20), "larger than 4 MiB"),
    "binary": (os.urandom(4096), ""),
    "NUL bytes": (b"train: images/train\0\nval: images/val\nnames: [a]\n", ""),
    "empty": (b"", "must be a mapping"),
    "a list": ("- a\n- b\n", "must be a mapping"),
    "a word": ("hello\n", "must be a mapping"),
    "several documents": (USUAL + "names: [a]\n---\nnames: [b]\n", "not valid YAML"),
    "unclosed quote": (USUAL + 'names: ["a\n', "not valid YAML"),
    "keys that are lists": ("? [a, b]\n: c\n" + USUAL + "names: [a]\n", ""),
    "path to the root": ("path: /\n" + USUAL + "names: [a]\n", "ok"),
    "path to etc": ("path: /etc\n" + USUAL + "names: [a]\n", "outside the allowed folders"),
    "path upwards": ("path: ../../secrets\n" + USUAL + "names: [a]\n", "outside the allowed folders"),
    "path with a NUL": ('path: "a\\0b"\n' + USUAL + "names: [a]\n", ""),
    "path of ten thousand characters": (f"path: {'a/' * 5000}\n" + USUAL + "names: [a]\n", "ok"),
    "train upwards": ("train: ../../secrets\nval: images/val\nnames: [a]\n", "outside the allowed folders"),
    "train in etc": ("train: /etc\nval: images/val\nnames: [a]\n", "outside the allowed folders"),
    "train is /proc": ("train: /proc/self/root\nval: images/val\nnames: [a]\n", "outside the allowed folders"),
    "train is a device": ("train: /dev/zero\nval: images/val\nnames: [a]\n", "outside the allowed folders"),
    "train is a url": ("train: http://127.0.0.1/x.zip\nval: images/val\nnames: [a]\n", "names no images"),
    "train is a stream": ("train: rtsp://10.0.0.1/x\nval: images/val\nnames: [a]\n", "names no images"),
    "train is a mapping": ("train: {a: b}\nval: images/val\nnames: [a]\n", "must name a folder"),
    "train with a NUL": ('train: "images\\0/train"\nval: images/val\nnames: [a]\n', ""),
    "train is a glob": ("train: images/*\nval: images/val\nnames: [a]\n", "names no images"),
    "train is an option": ("train: --help\nval: images/val\nnames: [a]\n", "names no images"),
    "train is the yaml": ("train: data.yaml\nval: images/val\nnames: [a]\n", "must name a folder"),
    "ten thousand splits": (f"train: [{'images/train,' * 10_000}]\nval: images/val\nnames: [a]\n", "ok"),
    "names of ten thousand characters": (USUAL + f"names: [{'n' * 10_000}]\n", "names: must be"),
    "names with control characters": (USUAL + 'names: ["a\\nb", "\\u0007", "\\u202Egpj"]\n', "ok"),
    "names that are options and paths": (USUAL + "names: [--help, ../../x, /etc/passwd, 'a;b']\n", "ok"),
    "names nested": (USUAL + "names: [[a], {b: c}]\n", "names: must be"),
    "names by words": (USUAL + "names: {zero: a}\n", "names: must be"),
    "names by huge numbers": (USUAL + f"names: {{{'9' * 900}: a, 0: b}}\n", "names: must be"),
    "names by negative numbers": (USUAL + "names: {-1: a, 0: b}\n", "names: must be"),
    "two names for a number": (USUAL + "names: {0: a, '00': b}\n", "two names for one class"),
    "a million classes": (USUAL + "names: [" + "a," * 100_000 + "]\n", "the limit is"),
    "nc of a billion": (USUAL + "nc: 1000000000\nnames: [a]\n", "ok"),
    "nc of a billion without names": (USUAL + "nc: 1000000000\n", "ok"),
    "nc that is code": (USUAL + "nc: __import__('os')\nnames: [a]\n", "ok"),
    "kpt_shape huge": (USUAL + "names: [a]\nkpt_shape: [100000000, 3]\n", "kpt_shape is"),
    "kpt_shape of words": (USUAL + "names: [a]\nkpt_shape: [a, b]\n", "list of whole numbers"),
    "flip_idx out of range": (USUAL + "names: [a]\nkpt_shape: [2, 3]\nflip_idx: [0, 7]\n", "flip_idx must name"),
    "other keys that Ultralytics knows": (
        USUAL + "names: [a]\nchannels: 99\nyaml_file: /etc/passwd\nminival: x\n",
        "ok",
    ),
}


@pytest.mark.parametrize("case", YAMLS)
def test_hostile_yaml_is_rejected_or_harmless(tmp_path, case):
    text, expected = YAMLS[case]
    outcome = run(tmp_path, with_yaml(text))
    assert expected in outcome
    assert not Path("/tmp/hostile-was-here").exists()


LABELS = {
    "a line of a hundred megabytes": (b"0 " + b"0.5 " * (25 << 20), "larger than 16 MiB"),
    "five million numbers": (b"0 " + b".5 " * (5 << 20), "ok"),
    "ten megabytes of digits": (b"0 .5 .5 .5 0." + b"5" * (10 << 20), "ok"),
    "a class of a million digits": (b"9" * (1 << 20) + b" .5 .5 .5 .5", "do not start with a class number"),
    "a class beyond 64 bits": ("18446744073709551616 .5 .5 .5 .5", "do not start with a class number"),
    "a class of two billion": ("2000000000 .5 .5 .5 .5", "do not start with a class number"),
    "numbers beyond doubles": ("0 1e999 .5 .5 .5", "NaN or infinity"),
    "denormal sizes": ("0 .5 .5 1e-320 1e-320", "ok"),
    "hexadecimal": ("0x0 .5 .5 .5 .5", "not a number"),
    "underscores": ("0 0.5_0 .5 .5 .5", "ok"),
    "other digits": ("\u0660 .5 .5 .5 .5", "not a number"),
    "NUL bytes": (b"0 .5 .5 .5 .5\0", "not a number"),
    "binary": (bytes(range(256)) * 8, "not a number"),
    "escape sequences": ("\x1b[2J .5 .5 .5 .5", "not a number"),
    "right to left marks": ("\u202e0 .5 .5 .5 .5", "not a number"),
    "UTF-16": ("0 .5 .5 .5 .5".encode("utf-16"), "ok"),
    "half a UTF-16": ("0 .5 .5 .5 .5".encode("utf-16") + b"\x00", ""),
    "two hundred thousand rows": ("0 .5 .5 .5 .5\n" * 200_000, "ok"),
    "a polygon of ten thousand corners": ("0 " + ".5 .6 .7 .2 " * 5_000 + "\n", "ok"),
    "a million lines of nothing": (b"\n" * (1 << 20), "ok"),
    "code": ("__import__('os').system('touch /tmp/hostile-was-here')\n", "not a number"),
    "pickle": (b"cos\nsystem\n(S'touch /tmp/hostile-was-here'\ntR.", "not a number"),
    "commas only": (",,,,,,", "ok"),
    "minus zero": ("-0 .5 .5 .5 .5", "ok"),
}


@pytest.mark.parametrize("case", LABELS)
def test_hostile_label_is_rejected_or_harmless(tmp_path, case):
    data, expected = LABELS[case]
    assert expected in run(tmp_path, with_label(data))
    assert not Path("/tmp/hostile-was-here").exists()
