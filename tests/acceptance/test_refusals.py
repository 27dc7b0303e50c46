"""Invalid datasets, configurations, commands and settings are refused with an error that names the cause."""

import json
import shutil

import pytest

from tests.acceptance.service import Service, running
from trainer.demo import draw_dataset


def broken_yaml(folder):
    path = folder / "data.yaml"
    path.write_text("train: [unclosed\nnames: {")
    return path


def without_labels(folder):
    path = draw_dataset(folder, images=5, size=64)
    for label in folder.glob("labels/*/*.txt"):
        label.unlink()
    return path


def without_val(folder):
    path = draw_dataset(folder, images=5, size=64)
    path.write_text(path.read_text().replace("val: images/val\n", ""))
    shutil.rmtree(folder / "images" / "val")
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nothing.yaml", "nothing.yaml"),
        (lambda folder: folder, "no"),
        (broken_yaml, "YAML"),
        (without_labels, "label"),
        (without_val, "val"),
    ],
    ids=["no dataset", "an empty directory", "unreadable YAML", "no labels", "no val split"],
)
def test_invalid_dataset_fails_run_with_error_that_names_cause(home, tmp_path, make, says):
    folder = tmp_path / "bad"
    folder.mkdir()
    with running(home, {}) as service:
        row = service.wait(service.insert(make(folder), epochs=1), "failed")

    assert says.lower() in row["error_message"].lower()
    assert "Traceback" not in row["error_message"]
    assert row["attempt"] == 1


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"epochs": 0}, "epochs"),
        ({"baseModel": "EfficientDet-D0"}, "EfficientDet-D0"),
        ({"imgSize": "huge"}, "imgSize"),
    ],
)
def test_invalid_configuration_fails_run_with_error_that_names_setting(home, data, configuration, says):
    with running(home, {}) as service:
        assert says in service.wait(service.insert(data, **configuration), "failed")["error_message"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "no-such-run"], "no such run"),
        (["cancel", "no-such-run"], "no such run"),
        (["logs", "no-such-run"], "no such run"),
        (["demo", "--folder", "/dev/null/demo"], "/dev/null/demo: the demo cannot write its files there ("),
        (["enqueue", "--data", "x", "--config", "{not json"], "not JSON"),
        (["enqueue", "--data", "x", "--config", "[1]", "--epochs", "3"], "--epochs"),
        *(
            (
                ["enqueue", "--data", "x", "--config", f'{{"lr0": {number}}}'],
                f"{number[:20]} is not a number that can be stored",
            )
            for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e5000", "9" * 5000)
        ),
        (["enqueue", "--data", "x", "--config", "[" * 33 + "]" * 33], "--config: nested deeper than 32 levels"),
        (["enqueue", "--data", "x", "--config", '{"a":' * 1500 + "1" + "}" * 1500], "nested deeper than 32 levels"),
        (["enqueue", "--data", "x", "--config", "[" * 50_000], "nested deeper than 32 levels"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_invalid_command_is_one_line_error(home, arguments, says):
    refused = Service(home, {}).run(*arguments, check=False)

    assert refused.returncode == (2 if arguments[0] == "enqueue" else 1)
    assert says in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stdout == ""


@pytest.mark.parametrize(
    "config",
    ["{}", "null", '{"seed": 1, "lrf": 1e-5}', '{"note": 100000000000000000000000}', '{"note": %s}' % ("[" * 31 + "]" * 31)],
)  # fmt: skip
def test_run_with_config_within_limits_is_queued(home, data, config):
    service = Service(home, {})

    run_id = service.run("enqueue", "--data", str(data), "--config", config).stdout.strip()

    assert service.row(run_id)["configuration"] == json.loads(config)


def test_command_with_invalid_project_url_exits_with_code_2(home):
    service = Service(
        home, {}, SUPABASE_URL="foo", SUPABASE_SERVICE_ROLE_KEY="sb_secret_of_the_test", BACKEND="supabase"
    )

    refused = service.run("status", check=False)

    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: SUPABASE_URL must be the project's URL")


def test_all_invalid_settings_are_reported_with_exit_code_2(home):
    service = Service(home, {}, POLL_INTERVAL="soon", SLOTS="-1")

    refused = service.run(check=False)

    assert refused.returncode == 2
    assert "POLL_INTERVAL" in refused.stderr
    assert "SLOTS" in refused.stderr
