"""The JSON Schema of a configuration, and the documentation page generated from the schema."""

from pathlib import Path

import pytest

from trainer.core.job import RunRequest
from trainer.request.configuration import RunConfiguration
from trainer.request.parse import plan_of
from trainer.request.schema import json_schema, markdown
from trainer.request.unnest import Unnested

PAGE = Path(__file__).parents[3] / "docs" / "run-configuration.md"
SCHEMA = json_schema()
PROPERTIES = SCHEMA["properties"]


def test_documentation_page_is_up_to_date():
    assert PAGE.read_text() == markdown(), f"run: python trainer_service.py schema --markdown > docs/{PAGE.name}"


def test_every_setting_has_a_description():
    assert set(PROPERTIES) == set(RunConfiguration.model_fields)
    assert all(part["description"].endswith(".") for part in PROPERTIES.values())


def test_schema_has_ranges_names_and_defaults():
    assert PROPERTIES["epochs"] | {"title": "", "description": ""} == {
        "type": "integer",
        "minimum": 1,
        "maximum": 100_000,
        "default": 100,
        "x-aliases": ["numEpochs", "nEpochs", "totalEpochs", "epoch"],
        "title": "",
        "description": "",
    }
    assert PROPERTIES["lr0"]["exclusiveMinimum"] == 0
    assert PROPERTIES["optimizer"]["enum"][:2] == ["SGD", "MuSGD"]
    assert SCHEMA["$defs"]["Task"]["enum"] == ["detect", "segment", "classify", "pose", "obb"]
    assert "default" not in PROPERTIES["time"]


def test_schema_lists_every_documented_form_of_a_value():
    assert [form.get("type", "object") for form in PROPERTIES["split"]["anyOf"]] == ["object", "number", "array"]
    assert [form["type"] for form in PROPERTIES["classes"]["anyOf"]] == ["integer", "array"]
    assert [form["type"] for form in PROPERTIES["device"]["anyOf"]] == ["string", "integer", "array"]
    assert SCHEMA["$defs"]["Split"]["properties"]["splits"]["additionalProperties"]["enum"] == ["train", "val", "test"]


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_default_in_schema_is_valid(name):
    if "default" in PROPERTIES[name]:
        plan = plan_of(RunRequest(data_yaml="d", configuration={name: PROPERTIES[name]["default"]}))
        assert plan.warnings == ()


@pytest.mark.parametrize(
    ("name", "alias"), [(name, alias) for name in PROPERTIES for alias in PROPERTIES[name]["x-aliases"]]
)
def test_alias_in_schema_is_accepted(name, alias):
    found = Unnested.of({alias: [7]})
    assert list(found.settings) == [name]
    assert found.warnings == []
