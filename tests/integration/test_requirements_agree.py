"""SQL in the database and Python for SQLite must read the same requirements."""

import itertools
import json

import pytest

from trainer.jobs.row import requirements

AMOUNTS = [
    None, 0, 1, 2, 1.5, -1, 1e3, 0.25, 10**30, True, "", "  ", "\n", "2", " 2 ", "2.5", "-2", "+2", "1e3", "0x2", "2,0", ".5", "5.", "nan",
    "Infinity", "two", [], [2], {}, {"a": 1}, "9" * 150,
]  # fmt: skip
DEVICES = [
    None, 0, 1, "", "  ", "\n", " , ", [""], "0", "cpu", "0,1", " 0 , 1 ", "0,1,2,3", "cuda:0,1", "cuda:0", "0,", ",0", ",", "0,,1", "-1", "-1,-1", "0,a", "mps",
    "0," * 70, "," * 2000 + "0,1", [0] * 64, [0] * 65, ",".join(map(str, range(64))),
    [], [0], [0, 1], ["0", "1"], [0, "a"], [0, None], [[0], [1]], {"0": 1}, True, "0;1", "0 1",
]  # fmt: skip
OTHERS = [
    None, 1, "text", True, [], {}, "", "  ", "null", "{broken", "[1]", '"a"', {"requires": None}, {"requires": 1}, {"requires": "x"},
    {"requires": []}, {"requires": {}}, {"requires": ""}, {"requires": " "}, {"requires": {}, "device": []}, '{"requires": {"gpus": 3}}', '{"device": "0,1"}', '"{\\"requires\\": {\\"gpus\\": 3}}"',
]  # fmt: skip


def all_configurations() -> list:
    plain = [
        *({"requires": {"gpus": amount}} for amount in AMOUNTS),
        *({"requires": {"gpu_memory_gb": amount}} for amount in AMOUNTS),
        *({"device": device} for device in DEVICES),
        *(
            {"requires": {"gpus": n}, "device": d}
            for n, d in itertools.product([1, 3, "x"], ["0,1", [0, 1, 2, 3], "cpu"])
        ),
    ]
    return [*OTHERS, *plain, *(json.dumps(configuration) for configuration in plain)]


@pytest.fixture(scope="module")
def by_the_database(supabase_servers):
    given = json.dumps(all_configurations()).replace("'", "''")
    found = supabase_servers.rows(f"""
        select r.gpus, r.gpu_memory_gb
        from jsonb_array_elements('{given}'::jsonb) with ordinality as given (configuration, n),
             trainer.requirements(given.configuration) as r
        order by n""")
    return [(row["gpus"], row["gpu_memory_gb"]) for row in found]


def test_database_and_python_read_same_requirements(by_the_database):
    configurations = all_configurations()
    assert len(by_the_database) == len(configurations) > 150
    asked = [requirements(configuration) for configuration in configurations]
    differing = [
        (configuration, sql, (python.gpus, python.gpu_memory_gb))
        for configuration, sql, python in zip(configurations, by_the_database, asked, strict=True)
        if sql != (python.gpus, python.gpu_memory_gb)
    ]
    assert differing == []
    assert (3, 0) in by_the_database
    assert (0, 3) in by_the_database


@pytest.mark.parametrize(
    ("capabilities", "served"),
    [({}, False), ({"gpus": 1, "gpu_memory_gb": 24}, False), ({"gpus": 2, "gpu_memory_gb": 23}, False),
     ({"gpus": 2, "gpu_memory_gb": 23.1}, True), ({"gpus": 2, "gpu_memory_gb": 24}, True), ({"gpus": 1.9, "gpu_memory_gb": 24}, False), ({"gpus": 8.0, "gpu_memory_gb": 80.5}, True)],
)  # fmt: skip
def test_database_and_python_agree_whether_worker_meets_requirements(supabase_servers, capabilities, served):
    configuration = {"requires": {"gpus": "2", "gpu_memory_gb": 24}}
    assert requirements(configuration).served_by(capabilities) is served
    answer = supabase_servers.sql(f"""
        select needs.gpus <= offer.gpus and needs.gpu_memory_gb <= offer.gpu_memory_gb
        from trainer.requirements('{json.dumps(configuration)}') as needs, trainer.offer('{json.dumps(capabilities)}') as offer""")
    assert answer == ("t" if served else "f")
