"""The trainings of a campaign, with settings and fault rates that fit their duration."""

from __future__ import annotations

import random
import time
from pathlib import Path

from PIL import Image, ImageDraw

from tests.faults import random_faults as faults
from tests.faults.cloud import BUCKET
from tests.faults.curves import check_curves
from tests.faults.hosts import LEASE, Host
from trainer.demo import draw_dataset

ATTEMPTS = 5  # `max_attempts` of each fake run
REAL_ATTEMPTS = 12  # on a busy machine, many faults happen before the first epoch
# relative frequency of each fault
FAKE_TRAINING_FAULTS = {
    faults.kill_training: 6,
    faults.kill_subreaper: 2,
    faults.kill_service: 5,
    faults.suspend_service: 3,
    faults.suspend_training: 2,
    faults.deploy: 3,
    faults.outage: 3,
    faults.wrong_queue_answers: 2,
    faults.lost_answers: 3,
    faults.bad_storage: 3,
    faults.wrong_storage_answers: 3,
    faults.bad_connection: 4,
    faults.cancel: 2,
    faults.finish: 1,
    faults.delete_row: 1,
    faults.invalid_row: 2,
    faults.edit_and_requeue: 2,
    faults.power_cut: 2,
    faults.full_disk: 1,
    faults.read_only_disk: 1,
}
REAL_FAULTS = {
    faults.kill_training: 12,
    faults.kill_subreaper: 2,
    faults.kill_spare: 1,
    faults.kill_service: 6,
    faults.suspend_service: 2,
    faults.suspend_training: 1,
    faults.deploy: 8,
    faults.outage: 2,
    faults.wrong_queue_answers: 2,
    faults.lost_answers: 3,
    faults.bad_storage: 3,
    faults.wrong_storage_answers: 3,
    faults.bad_connection: 2,
    faults.cancel: 1,
    faults.finish: 1,
    faults.delete_row: 1,
    faults.invalid_row: 2,
    faults.edit_and_requeue: 2,
    faults.power_cut: 2,
    faults.full_disk: 1,
    faults.read_only_disk: 1,
}
MEAN_EPOCHS = 2.0  # mean number of epochs that all runs together train between two faults
LONGEST_PAUSE = 15.0  # maximum number of seconds between two faults
REAL_LEASE = 8.0  # seconds
REAL_SETTINGS = {
    "LEASE_SECONDS": REAL_LEASE,
    "STALL_SECONDS": 20,
    "CHECKPOINT_INTERVAL": 2,
    "DRAIN_SECONDS": 25,
    "CANCEL_GRACE": 10,
    "WARM_START": 1,
}
# `nbs`: update the weights after each batch instead of after 64 images
REAL_CONFIGURATION = {
    "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "compute": "cpu", "plots": False, "warmup_epochs": 0,
    "mosaic": 0, "scale": 0.1, "translate": 0.05, "erasing": 0,
}  # fmt: skip


class FakeTraining:
    """Fake trainings: each epoch takes 0.2 s and is better than all earlier epochs."""

    title = "a fast fake training"
    lease = LEASE
    exit_seconds = 20  # maximum number of seconds from SIGTERM to the exit of a service
    patience = 180  # maximum number of seconds from the last fault to the end of all runs
    keeps_spare = False
    faults = FAKE_TRAINING_FAULTS

    def draw(self, folder: Path) -> Path:
        return draw_dataset(folder, images=6, size=32)

    def prepare(self, cloud, folder: Path) -> None:
        pass

    def host(self, cloud, home: Path, url: str) -> Host:
        settings = {"STALL_SECONDS": 3, "CHECKPOINT_INTERVAL": 1, "DRAIN_SECONDS": 6}
        return Host(cloud, home, {"seconds_per_epoch": 0.2}, url=url, **settings)

    def row(self, dice: random.Random) -> dict:
        return {"max_attempts": ATTEMPTS, "configuration": {"epochs": dice.randint(8, 40)}}

    def edited(self, row, dice: random.Random) -> dict:
        """Return columns with another configuration for the row."""
        other = {"epochs": dice.randint(8, 40), "batch": dice.choice([2, 4, 8]), "imgsz": dice.choice([32, 64])}
        return {"configuration": row["configuration"] | other}

    def pause(self, campaign) -> None:
        """Wait before the next fault."""
        time.sleep(campaign.random.expovariate(1 / 0.9))

    def busy(self, dice: random.Random, workers: int) -> int:
        """Return the number of concurrent runs: one worker stays free for takeovers."""
        return max(1, workers - 1)

    def check(self, findings, rows) -> None:
        pass


class RealTraining:
    """Trainings on drawn squares. Each run starts from weights that detect the squares, and then its fitness drops.

    So the first epochs are the best epochs. Most later epochs are not a new best, as in the last part of any training.
    """

    title = "real trainings with Ultralytics"
    lease = REAL_LEASE
    exit_seconds = 40
    patience = 300
    keeps_spare = True
    faults = REAL_FAULTS

    def draw(self, folder: Path) -> Path:
        return draw_squares(folder, images=12, size=64)

    def prepare(self, cloud, folder: Path) -> None:
        """Train the start weights of all runs, without faults."""
        host = Host(cloud, folder / "teacher", None, **REAL_SETTINGS).start()
        data = draw_squares(cloud.data.parent / "teaching", images=24, size=64)
        lesson = {"epochs": 30, "optimizer": "AdamW", "lr0": 0.002, "patience": 0}
        run_id = cloud.insert(data_yaml=str(data), configuration=REAL_CONFIGURATION | lesson)
        row = cloud.wait(run_id, "completed", "failed", seconds=300)
        assert row["status"] == "completed", row["error_message"]
        assert row["results"]["mAP"] > 0.2, "the start weights have not learned enough"
        self._weights = cloud.storage.get(BUCKET, f"training_runs/{run_id}/1/best.pt")
        host.stop()
        cloud.clear()

    def host(self, cloud, home: Path, url: str) -> Host:
        (home / "models").mkdir(parents=True)
        for name in ("learned_squares.pt", "other_squares.pt"):
            (home / "models" / name).write_bytes(self._weights)
        return Host(cloud, home, None, url=url, **REAL_SETTINGS)

    def row(self, dice: random.Random) -> dict:
        hyperparameters = {
            "epochs": dice.randint(10, 24), "seed": dice.randrange(1000), "optimizer": "SGD",
            "lr0": dice.choice([0.002, 0.004, 0.008]), "lrf": 0.1,
        }  # fmt: skip
        configuration = REAL_CONFIGURATION | hyperparameters
        return {"max_attempts": REAL_ATTEMPTS, "base_model": "learned_squares.pt", "configuration": configuration}

    def edited(self, row, dice: random.Random) -> dict:
        """Return columns with other values for one or more settings of the row."""
        other = {
            "epochs": dice.randint(8, 20), "batch": dice.choice([2, 3, 8]), "imgsz": 32, "lr0": 0.003, "seed": 5,
            "patience": 50,
        }  # fmt: skip
        chosen = dice.sample(sorted(other), dice.randint(1, 3))
        columns = {"configuration": row["configuration"] | {name: other[name] for name in chosen}}
        return columns | ({"base_model": "other_squares.pt"} if dice.random() < 0.2 else {})

    def pause(self, campaign) -> None:
        """Wait until some epochs are trained, so that trainings make progress on a busy machine."""
        wanted, deadline = campaign.random.expovariate(1 / MEAN_EPOCHS), time.monotonic() + LONGEST_PAUSE
        before = campaign.ask(campaign.cloud.count_epochs) or 0
        while time.monotonic() < deadline:
            time.sleep(0.3)
            if (campaign.ask(campaign.cloud.count_epochs) or 0) - before >= wanted:
                return

    def busy(self, dice: random.Random, workers: int) -> int:
        """Return the number of concurrent runs: sometimes a worker stays free, so that runs move between hosts."""
        return dice.randint(1, workers)

    def check(self, findings, rows) -> None:
        return check_curves(findings, rows)


def draw_squares(folder: Path, images: int, size: int, seed: int = 7) -> Path:
    """Draw images with one large square on noise, a third of them for val. Return the path of data.yaml."""
    dice = random.Random(seed)
    for index in range(images):
        split = "train" if index % 3 else "val"
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        image = Image.frombytes("RGB", (size, size), bytes(dice.choices(range(40, 110), k=3 * size * size)))
        side = dice.uniform(0.4, 0.7)
        x, y = (dice.uniform(side / 2, 1 - side / 2) for _ in "xy")
        corners = [size * edge for edge in (x - side / 2, y - side / 2, x + side / 2, y + side / 2)]
        ImageDraw.Draw(image).rectangle(corners, fill=tuple(dice.randrange(180, 256) for _ in "rgb"))
        image.save(folder / "images" / split / f"{index:03d}.png")
        (folder / "labels" / split / f"{index:03d}.txt").write_text(f"0 {x:.6f} {y:.6f} {side:.6f} {side:.6f}\n")
    data = folder / "data.yaml"
    data.write_text("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: square\n")
    return data
