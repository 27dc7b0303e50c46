"""Untrusted text in messages: short, printable, without secrets."""

import json

import pytest

from trainer.core.text import CONTROLS, escaped, one_line, printable, safe_json, shown, shown_url


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("https://user:pw@host.example/a/b.zip?token=t#f", "https://host.example/a/b.zip"),
        ("HTTP://u@host.example?token=t", "HTTP://host.example"),
        ("s3://key:secret@host/bucket/a.zip?x=y", "s3://host/bucket/a.zip"),
        ("/data/a?b#c@d/data.yaml", "/data/a?b#c@d/data.yaml"),
        ("storage:datasets/x@y/data.yaml", "storage:datasets/x@y/data.yaml"),
        ("", ""),
    ],
)
def test_user_password_query_and_fragment_are_removed_from_url(text, public):
    assert shown_url(text) == public


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (3, "3"),
        (True, "True"),
        (None, "None"),
        ([1, "a"], '[1, "a"]'),
        ({"a": [1]}, '{"a": [1]}'),
        ("a\x1b[31m\n", r"'a\x1b[31m\n'"),
        ("\ud800", r"'\ud800'"),
        ("https://u:p@host/a.zip?token=x", "'https://host/a.zip'"),
        (["https://u:p@host/a.zip?token=x"], '["https://…@host/a.zip?…"]'),
        ("see https://u:p@host/a.zip?token=x", "'see https://…@host/a.zip?…'"),
        (10**99, "a number of more than 60 digits"),
        ([10**99], "a list"),
        ([0] * 101, "a list"),
        ([[[[[0]]]]], "a list"),
    ],
)
def test_value_is_shown_on_one_line(value, text):
    assert shown(value) == text


@pytest.mark.parametrize("value", ["x" * 10**6, "\u2028" * 10**6, "//" * 10**6, ["y" * 50] * 100, {"k" * 90: "v" * 90}])
def test_long_value_is_truncated_in_the_middle(value):
    assert len(shown(value)) == 100
    assert "…" in shown(value)
    assert len(shown(value, 60)) == 60


def test_printable_text_is_unquoted_and_short():
    assert printable("a\x1b[31m\n") == r"a\x1b[31m\x0a"
    assert printable("https://u:p@host/a.zip?token=x") == "https://host/a.zip"
    assert len(printable("x" * 5000)) == 120


def test_escaped_text_has_visible_escapes_and_keeps_lines():
    assert (
        escaped("a\x1b[1m\tb\nc\x7f\x9b\u2028\u202e\ud800\u200d\u00e9")
        == "a\\x1b[1m\tb\nc\\x7f\\x9b\\u2028\\u202e\\ud800\u200d\u00e9"
    )
    assert one_line("a\nb\r\n") == "a\\nb\\x0d\\n"


def test_safe_json_has_the_same_value_and_no_control_characters():
    value = {"a\x7f": ["\x9b", "\u202e", "\n", "\u00e9"]}

    text = safe_json(value, ensure_ascii=False)

    assert json.loads(text) == value
    assert "\u00e9" in text
    assert not CONTROLS.search(text)
