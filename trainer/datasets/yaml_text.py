"""Parse the text of an untrusted YAML file. Every scalar is text."""

from __future__ import annotations

import re
from typing import Any

import yaml

from trainer.core.errors import DatasetError
from trainer.core.text import printable
from trainer.datasets.findings import Report

MAX_DEPTH = 12  # levels of nesting
MAX_EVENTS = 500_000


def parsed(text: str, name: str, report: Report) -> Any:
    """Return the value of a YAML text. Raises `DatasetError`. `name` is the name of the file in messages."""
    # YAML does not allow tabs as indentation, but some authors use them
    without_tabs = re.sub(r"^[ \t]+", lambda match: match[0].expandtabs(2), text, flags=re.MULTILINE)
    for version in (text, without_tabs):
        try:
            value = _loaded(version, name)
        except yaml.YAMLError as error:
            reason = _reason(error)
        else:
            if version is not text:
                report.add("yaml_tabs", file=printable(name))
            return value
    raise DatasetError(f"{printable(name)} is not valid YAML: {reason}.")


def _loaded(text: str, name: str) -> Any:
    # libyaml recurses in C, and deep nesting would crash the process; so the depth is checked first
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.CBaseLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise DatasetError(f"{printable(name)} uses YAML aliases (*name). Replace each alias with its value.")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or number > MAX_EVENTS:
            raise DatasetError(f"{printable(name)} is nested too deeply or has too many values for a dataset YAML.")
    return yaml.load(text, Loader=yaml.CBaseLoader)  # noqa: S506 - the base loader makes only str, list, dict


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {printable(error.problem or 'unreadable')}"
    return printable(str(error).splitlines()[0])
