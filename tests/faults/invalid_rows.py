"""Invalid rows. The current schema refuses some of them, but an older schema can have stored them.

Each row must become a failed run with a reason.
"""

from __future__ import annotations

import json
import uuid

_NESTED = 1500  # levels of JSON arrays or objects

# name → columns of the row as SQL; `configuration` is jsonb, the other columns are text
ROWS = {
    "nested configuration": {"configuration": '{"epochs": ' + "[" * _NESTED + "]" * _NESTED + "}"},
    "nested objects": {"configuration": '{"a": ' * _NESTED + "1" + "}" * _NESTED},
    "5,001 digits": {"configuration": '{"epochs": 1e5000}'},
    "-1e999": {"configuration": '{"lr0": -1e999}'},
    "a list with null": {"configuration": "[null]"},
    "a list with a number": {"configuration": "[1]"},
    "a number": {"configuration": "7"},
    "a string": {"configuration": '"epochs"'},
    "wrong types": {"configuration": '{"epochs": {"a": 1}, "batch": [true], "imgsz": "many", "dataYaml": {"b": 2}}'},
    "not a number": {"configuration": '{"epochs": "NaN", "lr0": "Infinity"}'},
    "zero epochs": {"configuration": '{"epochs": 0}'},
    "a path outside of the roots": {"data_yaml": "../../../../etc/passwd"},
    "a long path": {"data_yaml": "x/" * 20_000},
    "a long model": {"base_model": "y" * 20_000 + ".pt"},
    "a model with control characters": {"base_model": "\u202e\u0007../learned.pt"},
    "impossible requirements": {
        "configuration": '{"epochs": 1, "impossible requirements": {"gpus": "many"}, "device": [[0]]}'
    },
}


def insert(cloud, name: str, base_model: str) -> str:
    """Insert the row `name` without the triggers that would refuse it, and return its ID.

    Raises SqlError while the server is down.
    """
    run_id = str(uuid.uuid4())
    columns = {"run_name": f"invalid: {name}", "base_model": base_model, "data_yaml": str(cloud.data)}
    # written as SQL, because Python cannot encode some of the documents
    columns |= {"id": run_id, "configuration": json.dumps({"epochs": 3})} | ROWS[name]
    values = ", ".join(_quoted(value) for value in columns.values())
    without_triggers = "set session_replication_role = replica;"
    cloud.sql(f"{without_triggers} insert into training_runs ({', '.join(columns)}) values ({values});")
    return run_id


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
