"""What every program here needs to say and hear, in plain JSON and without our own code. Not a program itself."""

import json
import os
import sys

EVENTS = int(sys.argv[sys.argv.index("--events-fd") + 1])


def order():
    return json.loads(sys.stdin.readline())


def send(**event):
    say(json.dumps(event).encode() + b"\n")


def say(data):
    while data:
        data = data[os.write(EVENTS, data) :]


def phase(name):
    send(kind="phase", phase=name)


def epoch(number, total=3):
    send(kind="epoch", epoch=number, total_epochs=total, metrics={"metrics/mAP50(B)": 0.5}, seconds=0.1)


def finished(**report):
    send(kind="finished", best="/run/best.pt", last="/run/last.pt", report=report)
