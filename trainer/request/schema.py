"""Describes the configuration of a run: for programs as JSON Schema, for people as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from trainer.core.job import JsonObject
from trainer.request.configuration import ARGUMENTS, Requirements, RunConfiguration
from trainer.request.fields import rule_of
from trainer.request.split import Split
from trainer.request.train_arguments import IGNORED, REFUSED
from trainer.request.unnest import SECTIONS, aliases_of

_NAMES = "Case, `_` and `-` in names are ignored: `imgSize` and `img_size` are the same."


def json_schema() -> JsonObject:
    """Return the JSON Schema of a configuration; `x-aliases` lists the other names of a setting."""
    schema = RunConfiguration.model_json_schema(by_alias=False)
    schema["description"] += (
        f' {_NAMES} A blank value means the default. Other types are converted: "16" is read as 16.'
    )
    parts = {"RunConfiguration": schema, **schema["$defs"]}
    for model in (RunConfiguration, Split, Requirements):
        for name, part in parts[model.__name__]["properties"].items():
            part["x-aliases"] = _other_names(model, name)
            if part.get("default", ...) is None:  # there is no fixed default value
                del part["default"]
    split = schema["properties"]["split"]
    share = {"type": "number", "minimum": 0, "maximum": 1}
    shares = {"type": "array", "items": share, "minItems": 2, "maxItems": 3}
    split["anyOf"] = [{"$ref": split.pop("$ref")}, share, shares]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def markdown() -> str:
    """Return `docs/run-configuration.md`."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    own = [name for name in RunConfiguration.model_fields if name not in ARGUMENTS]
    yield from (
        "# Configuration of a run",
        "",
        "This page lists every setting that the `configuration` of a row can contain. The command",
        "`python trainer_service.py schema --markdown` prints this page, and `schema` prints the settings as JSON Schema.",
        "",
        f"- {_NAMES}",
        '- Numbers and flags may be text: `16`, `16.0` and `"16"` are the same; `true`, `yes`, `on` and `1` are the same.',
        '- A blank value (`null`, `""`, `[]`, `{}`) means the default.',
        "- A setting may be inside a section: " + ", ".join(f"`{name}`" for name in sorted(SECTIONS)) + ".",
        "  The value in a section has priority over a value outside of the section.",
        "- An unknown setting is ignored with a warning. A wrong value fails the run; every wrong value is reported.",
        "",
        "## Settings of the service",
        "",
    )
    yield from _table(RunConfiguration, own)
    yield from (
        "",
        "### `split`",
        "",
        "The value can also be the share of the train split, or the list of shares `[train, val, test]`.",
        "",
    )
    yield from _table(Split, list(Split.model_fields))
    yield from ("", "### `requires`", "")
    yield from _table(Requirements, list(Requirements.model_fields))
    yield from (
        "",
        "## Train arguments",
        "",
        "These arguments have the same meaning as in Ultralytics. If tasks are in brackets, only these tasks use the argument.",
        "",
    )
    yield from _table(RunConfiguration, list(ARGUMENTS))
    yield from ("", "## Refused", "", "A run that sets one of these settings fails, unless the value is `false`.", "")
    yield from _reasons(REFUSED)
    yield from ("", "## Ignored", "", "These settings have no effect and cause a warning.", "")
    yield from _reasons(IGNORED)


def _table(model: type[BaseModel], names: list[str]) -> Iterator[str]:
    yield "| setting | other names | value | default | meaning |"
    yield "|---|---|---|---|---|"
    for name in names:
        field = model.model_fields[name]
        others = ", ".join(f"`{other}`" for other in _other_names(model, name))
        default = "" if field.default in (None, (), {}) else f"`{json.dumps(field.default)}`"
        yield f"| `{name}` | {others} | {rule_of(field)} | {default} | {field.description} |"


def _other_names(model: type[BaseModel], name: str) -> list[str]:
    """Return the aliases of a field, and its name in camelCase."""
    own = [to_camel(name)] if "_" in name else []
    return list(dict.fromkeys([*own, *aliases_of(model, name)]))


def _reasons(table: Mapping[str, str]) -> Iterator[str]:
    yield "| setting | reason |"
    yield "|---|---|"
    for name, reason in table.items():
        yield f"| `{name}` | {reason} |"
