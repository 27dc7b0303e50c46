"""A fast training process without torch, with the protocol, files and behavior of the real training process.

It reports phases, batches, checkpoints, and epochs with metrics that improve. It writes `run_dir/weights/best.pt` and
`last.pt`, `results.csv`, `args.yaml` and `checkpoints/epoch-NNNNN.pt` with their `.json`. It resumes from
the checkpoint `resume` of the training order. After a stop request ("canceled", "shutdown"), it sends `stopped` without
a new checkpoint. After a finish request ("finish"), it ends the epoch and sends `finished`.

Use it with `ChildTrainer(program=(sys.executable, ".../trains_quickly.py"))`. The plan contains the number of epochs.
The other options are a JSON object in `behavior.json` in the root of the dataset. With the argument `--behavior FILE`,
they are in FILE instead. The program reads them when it gets its training order:

    seconds_per_epoch   0.02    spread over the batches
    batches             2       per epoch
    seconds_to_start    0       between the training order and the first event
    seconds_to_finish   0       in the phase "finalizing"
    checkpoint_bytes    2000    size of each checkpoint
    lines               1       printed on stdout per epoch
    warnings            []      sent as warning events at the start
    at_epoch            none    the epoch (1-based) in which the failure below happens, after its first batch; 0: before
                                the first event, "finalizing": after the last epoch
    crash               none    {"error": "RuntimeError", "message": "CUDA out of memory"}: sent as `crashed`
    exit                none    exit code, without a final event
    signal              none    number of the signal that the program sends to itself
    print               none    text printed before the failure
    hang                false   the failure is a sleep of one hour, in which stop requests are ignored
    ignores_stop        false   ignores stop requests for the whole training
    ignores_signals     false   ignores SIGTERM and SIGINT for the whole training
    only_fresh          false   the failure happens only in a training that does not resume
    report              {}      merged into the final report
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

WEIGHTS = b"not really weights: "


class StopRequested(Exception):
    """A stop request arrived."""


class Quick:
    def __init__(self, events_fd, behavior_file):
        self.events_fd = events_fd
        self.behavior_file = behavior_file
        self.reason = None
        self.ordered = threading.Event()

    def main(self):
        threading.Thread(target=self.listen, daemon=True).start()
        self.ordered.wait()
        self.send(kind="sandbox", missing=[])  # the report of a process that has entered the sandbox
        run_dir, plan = Path(self.order["run_dir"]), self.order["plan"]
        self.run_dir, self.epochs = run_dir, int(plan["epochs"])
        self.first_epoch = 1
        if self.order["resume"]:
            self.first_epoch = json.loads(Path(self.order["resume"]).read_bytes().partition(b"\n")[0])["epoch"] + 1
        if self.option("ignores_signals", False):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.fail_if_due(0)
        if self.order["is_test"]:
            self.send(kind="stopped")
            return
        time.sleep(self.option("seconds_to_start", 0))
        try:
            self.train()
        except StopRequested:
            self.send(kind="stopped")

    def listen(self):
        for line in sys.stdin:
            command = json.loads(line)
            if command["kind"] == "train":
                self.behavior = self.read_behavior(command)
                self.order = command
                self.ordered.set()
            elif not self.option("ignores_stop", False):
                self.reason = command["reason"]
        os._exit(0)  # the supervisor has ended

    def read_behavior(self, order):
        path = Path(self.behavior_file or Path(order["dataset"]["root"]) / "behavior.json")
        return json.loads(path.read_text()) if path.exists() else {}

    def option(self, name, default):
        return self.behavior.get(name, default)

    def train(self):
        (self.run_dir / "weights").mkdir(parents=True, exist_ok=True)
        (self.run_dir / "args.yaml").write_text(f"epochs: {self.epochs}\n")
        for epoch in range(self.order["last_reported_epoch"] + 1, self.first_epoch):
            # the last attempt did not report this epoch; a real training also reports the epoch before it continues
            self.report_epoch(epoch)
        self.send(kind="phase", phase="loading", seconds=None)
        for message in self.option("warnings", []):
            self.send(kind="warning", code="test", message=message)
        self.send(kind="phase", phase="scanning", seconds=0.0)
        self.send(kind="phase", phase="training", seconds=0.0)
        (self.run_dir / "results.csv").write_text("epoch,time,train/box_loss,metrics/mAP50(B)\n")
        for epoch in range(1, self.first_epoch):
            self.write_row(epoch)  # a real training restores the rows from its checkpoint
        done = self.first_epoch - 1
        for epoch in range(self.first_epoch, self.epochs + 1):
            self.train_epoch(epoch)
            done = epoch
            if self.reason == "finish":
                break
        self.send(kind="phase", phase="finalizing", seconds=0.0)
        self.fail_if_due("finalizing")
        self.pause(self.option("seconds_to_finish", 0))
        self.finish(done)

    def train_epoch(self, epoch):
        batches, seconds = self.option("batches", 2), self.option("seconds_per_epoch", 0.02)
        loss, _ = numbers(epoch)
        for batch in range(1, batches + 1):
            self.pause(seconds / batches)
            self.send(
                kind="batch",
                phase="training",
                epoch=epoch,
                total_epochs=self.epochs,
                batch=batch,
                total_batches=batches,
                losses={"box_loss": loss},
                images_per_second=100.0,
                gpu_memory=None,
                eta_seconds=(self.epochs - epoch + 1) * seconds,
            )
            if batch == 1:
                self.fail_if_due(epoch)
        for number in range(self.option("lines", 1)):
            print(f"epoch {epoch}/{self.epochs} line {number}: box_loss {loss:.3f}", flush=True)
        self.write_row(epoch)
        self.save_checkpoint(epoch)
        self.report_epoch(epoch)

    def write_row(self, epoch):
        loss, quality = numbers(epoch)
        with (self.run_dir / "results.csv").open("a") as results:
            results.write(f"{epoch},{epoch * self.option('seconds_per_epoch', 0.02)},{loss},{quality}\n")

    def report_epoch(self, epoch):
        seconds, (loss, quality) = self.option("seconds_per_epoch", 0.02), numbers(epoch)
        metrics = {"train/box_loss": loss, "metrics/precision(B)": quality, "metrics/recall(B)": quality}
        metrics |= {"metrics/mAP50(B)": quality, "metrics/mAP50-95(B)": quality / 2, "lr/pg0": 0.01}
        self.send(
            kind="epoch",
            epoch=epoch,
            total_epochs=self.epochs,
            metrics=metrics,
            seconds=seconds,
            eta_seconds=(self.epochs - epoch) * seconds,
        )

    def save_checkpoint(self, epoch):
        content = json.dumps({"epoch": epoch}).encode() + b"\n"
        content = content.ljust(self.option("checkpoint_bytes", 2000), b".")
        folder = self.run_dir / "checkpoints"
        folder.mkdir(exist_ok=True)
        path = folder / f"epoch-{epoch:05d}.pt"
        digest = hashlib.sha256(content).hexdigest()
        facts = {"epoch": epoch, "sha256": digest, "bytes": len(content)}
        for target, data in ((path, content), (path.with_suffix(".json"), json.dumps(facts).encode())):
            target.with_suffix(".tmp").write_bytes(data)
            target.with_suffix(".tmp").replace(target)
        (self.run_dir / "weights" / "last.pt").write_bytes(content)
        self.send(kind="checkpoint", key=None, **facts)

    def finish(self, done):
        weights = self.run_dir / "weights"
        for name in ("best.pt", "last.pt"):
            (weights / name).write_bytes(WEIGHTS + name.encode() + b" " + str(done).encode())
        quality = round(done / (done + 1), 4)
        report = {"mAP": quality / 2, "precision": quality, "recall": quality, "epochs_completed": done}
        report["metrics"] = {"metrics/mAP50(B)": quality, "metrics/mAP50-95(B)": quality / 2}
        report |= self.option("report", {})
        self.send(
            kind="finished", best=described(weights / "best.pt"), last=described(weights / "last.pt"), report=report
        )

    def fail_if_due(self, where):
        if self.option("at_epoch", None) != where or (self.option("only_fresh", False) and self.order["resume"]):
            return
        if text := self.option("print", None):
            print(text, flush=True)
        if crash := self.option("crash", None):
            self.send(kind="crashed", traceback="", phase="training", **crash)
            sys.exit(1)
        if number := self.option("signal", None):
            os.kill(os.getpid(), number)
        if self.option("hang", False):
            time.sleep(3600)
        if (code := self.option("exit", None)) is not None:
            os._exit(code)

    def pause(self, seconds):
        """Sleep for `seconds`. Raises StopRequested if a stop request arrives."""
        deadline = time.monotonic() + seconds
        while self.reason in (None, "finish") and time.monotonic() < deadline:
            time.sleep(min(0.01, max(0.0, deadline - time.monotonic())))
        if self.reason in ("canceled", "shutdown"):
            raise StopRequested

    def send(self, **event):
        os.write(self.events_fd, json.dumps(event).encode() + b"\n")


def described(path):
    """Return the checksum and the size of a file for the final event."""
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def numbers(epoch):
    """Return the loss and the fitness of an epoch."""
    return 1 / epoch, round(epoch / (epoch + 1), 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--behavior")
    parser.add_argument("--events-fd", type=int, required=True)
    arguments = parser.parse_args()
    Quick(arguments.events_fd, arguments.behavior).main()
