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

# case → (YAML, part of the error; "ok" if the dataset is accepted)
YAMLS = {
    "download script in Python": (USUAL + f"names: [a]\ndownload: |\n  {TOUCH}\n", "ok"),
    "download script in Bash": (USUAL + "names: [a]\ndownload: bash -c 'touch /tmp/hostile-was-here'\n", "ok"),
    "download from a URL": (USUAL + "names: [a]\ndownload: http://169.254.169.254/latest/meta-data\n", "ok"),
    "download script and missing val folder": (
        f"train: images/train\nval: images/none\nnames: [a]\ndownload: {TOUCH}\n",
        "no val split",
    ),
    "Python object tag": (USUAL + "names: !!python/object/apply:os.system ['touch /tmp/hostile-was-here']\n", "ok"),
    "Python name tag on a key": (USUAL + "!!python/name:os.system names: [a]\n", "ok"),
    "Python module tag as path": (USUAL + "names: [a]\npath: !!python/module:os .\n", "ok"),
    "unknown tag": (USUAL + "names: !x/y [a]\n", "ok"),
    "binary tag": (USUAL + "names: [!!binary aGVsbG8=]\n", "ok"),
    "alias": (USUAL + "names: &x [a, b]\nother: *x\n", "aliases"),
    "alias bomb": (bomb(), "aliases"),
    "merge key": (USUAL + "base: &b {names: [a]}\n<<: *b\n", "aliases"),
    "alias to itself": (USUAL + "names: &x [*x]\n", "aliases"),
    "deeply nested lists": (USUAL + "names: " + "[" * 50_000, "nested too deeply"),
    "deeply nested mappings": (USUAL + "names: " + "{a: " * 50_000, "nested too deeply"),
    "deeply indented mappings": ("\n".join(" " * n + "a:" for n in range(2000)), "nested too deeply"),
    "too many values": (USUAL + "names: [" + "a," * 600_000 + "]", "too many values"),
    "file of 5 MiB": (b"#" * (5 << 20), "larger than 4 MiB"),
    "one line of 100 MiB": (b"names: " + b"a" * (100 << 20), "larger than 4 MiB"),
    "binary content": (os.urandom(4096), ""),
    "NUL bytes": (b"train: images/train\0\nval: images/val\nnames: [a]\n", ""),
    "empty file": (b"", "must be a mapping"),
    "list instead of a mapping": ("- a\n- b\n", "must be a mapping"),
    "text instead of a mapping": ("hello\n", "must be a mapping"),
    "several documents": (USUAL + "names: [a]\n---\nnames: [b]\n", "not valid YAML"),
    "unclosed quote": (USUAL + 'names: ["a\n', "not valid YAML"),
    "list as key": ("? [a, b]\n: c\n" + USUAL + "names: [a]\n", ""),
    "path is /": ("path: /\n" + USUAL + "names: [a]\n", "ok"),
    "path is /etc": ("path: /etc\n" + USUAL + "names: [a]\n", "outside the allowed folders"),
    "path with path traversal": ("path: ../../secrets\n" + USUAL + "names: [a]\n", "outside the allowed folders"),
    "path with a NUL byte": ('path: "a\\0b"\n' + USUAL + "names: [a]\n", ""),
    "path of 10,000 characters": (f"path: {'a/' * 5000}\n" + USUAL + "names: [a]\n", "ok"),
    "train with path traversal": ("train: ../../secrets\nval: images/val\nnames: [a]\n", "outside the allowed folders"),
    "train is /etc": ("train: /etc\nval: images/val\nnames: [a]\n", "outside the allowed folders"),
    "train is a folder of /proc": (
        "train: /proc/self/root\nval: images/val\nnames: [a]\n",
        "outside the allowed folders",
    ),
    "train is a device": ("train: /dev/zero\nval: images/val\nnames: [a]\n", "outside the allowed folders"),
    "train is a URL": ("train: http://127.0.0.1/x.zip\nval: images/val\nnames: [a]\n", "names no images"),
    "train is a video stream": ("train: rtsp://10.0.0.1/x\nval: images/val\nnames: [a]\n", "names no images"),
    "train is a mapping": ("train: {a: b}\nval: images/val\nnames: [a]\n", "must name a folder"),
    "train with a NUL byte": ('train: "images\\0/train"\nval: images/val\nnames: [a]\n', ""),
    "train is a glob": ("train: images/*\nval: images/val\nnames: [a]\n", "names no images"),
    "train is a command-line option": ("train: --help\nval: images/val\nnames: [a]\n", "names no images"),
    "train is the YAML file": ("train: data.yaml\nval: images/val\nnames: [a]\n", "must name a folder"),
    "10,000 entries in train": (f"train: [{'images/train,' * 10_000}]\nval: images/val\nnames: [a]\n", "ok"),
    "class name of 10,000 characters": (USUAL + f"names: [{'n' * 10_000}]\n", "names: must be"),
    "class names with control characters": (USUAL + 'names: ["a\\nb", "\\u0007", "\\u202Egpj"]\n', "ok"),
    "options and paths as class names": (USUAL + "names: [--help, ../../x, /etc/passwd, 'a;b']\n", "ok"),
    "lists and mappings as class names": (USUAL + "names: [[a], {b: c}]\n", "names: must be"),
    "text as class number": (USUAL + "names: {zero: a}\n", "names: must be"),
    "huge class number": (USUAL + f"names: {{{'9' * 900}: a, 0: b}}\n", "names: must be"),
    "negative class number": (USUAL + "names: {-1: a, 0: b}\n", "names: must be"),
    "two names of one class number": (USUAL + "names: {0: a, '00': b}\n", "two names for one class"),
    "100,000 classes": (USUAL + "names: [" + "a," * 100_000 + "]\n", "the limit is"),
    "nc is a billion": (USUAL + "nc: 1000000000\nnames: [a]\n", "ok"),
    "nc is a billion, without names": (USUAL + "nc: 1000000000\n", "ok"),
    "nc is Python code": (USUAL + "nc: __import__('os')\nnames: [a]\n", "ok"),
    "kpt_shape is huge": (USUAL + "names: [a]\nkpt_shape: [100000000, 3]\n", "kpt_shape is"),
    "kpt_shape is text": (USUAL + "names: [a]\nkpt_shape: [a, b]\n", "list of whole numbers"),
    "flip_idx is out of range": (USUAL + "names: [a]\nkpt_shape: [2, 3]\nflip_idx: [0, 7]\n", "flip_idx must name"),
    "other keys of Ultralytics": (
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
    "one line of 100 MiB": (b"0 " + b"0.5 " * (25 << 20), "larger than 16 MiB"),
    "5 million numbers in one row": (b"0 " + b".5 " * (5 << 20), "ok"),
    "number with 10 million digits": (b"0 .5 .5 .5 0." + b"5" * (10 << 20), "ok"),
    "class number with a million digits": (b"9" * (1 << 20) + b" .5 .5 .5 .5", "do not start with a class number"),
    "class number of more than 64 bits": ("18446744073709551616 .5 .5 .5 .5", "do not start with a class number"),
    "class number of two billion": ("2000000000 .5 .5 .5 .5", "do not start with a class number"),
    "number above the range of a double": ("0 1e999 .5 .5 .5", "NaN or infinity"),
    "denormal sizes": ("0 .5 .5 1e-320 1e-320", "ok"),
    "hexadecimal number": ("0x0 .5 .5 .5 .5", "not a number"),
    "number with an underscore": ("0 0.5_0 .5 .5 .5", "ok"),
    "Arabic digit": ("\u0660 .5 .5 .5 .5", "not a number"),
    "NUL bytes": (b"0 .5 .5 .5 .5\0", "not a number"),
    "binary content": (bytes(range(256)) * 8, "not a number"),
    "escape sequences": ("\x1b[2J .5 .5 .5 .5", "not a number"),
    "right-to-left override": ("\u202e0 .5 .5 .5 .5", "not a number"),
    "UTF-16": ("0 .5 .5 .5 .5".encode("utf-16"), "ok"),
    "UTF-16 with an odd number of bytes": ("0 .5 .5 .5 .5".encode("utf-16") + b"\x00", ""),
    "200,000 rows": ("0 .5 .5 .5 .5\n" * 200_000, "ok"),
    "polygon with 10,000 corners": ("0 " + ".5 .6 .7 .2 " * 5_000 + "\n", "ok"),
    "a million empty lines": (b"\n" * (1 << 20), "ok"),
    "Python code": ("__import__('os').system('touch /tmp/hostile-was-here')\n", "not a number"),
    "pickle with code": (b"cos\nsystem\n(S'touch /tmp/hostile-was-here'\ntR.", "not a number"),
    "only commas": (",,,,,,", "ok"),
    "negative zero as class number": ("-0 .5 .5 .5 .5", "ok"),
}


@pytest.mark.parametrize("case", LABELS)
def test_hostile_label_is_rejected_or_harmless(tmp_path, case):
    data, expected = LABELS[case]
    assert expected in run(tmp_path, with_label(data))
    assert not Path("/tmp/hostile-was-here").exists()
