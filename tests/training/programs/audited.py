"""The training process that prints every attempt to use the network or start a program, and allows it."""

import sys

WATCHED = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
)


def witness(event, args):
    if event in WATCHED:
        print(f"WITNESSED {event} {args}", file=sys.stderr, flush=True)


sys.addaudithook(witness)

from trainer.training.child import main  # noqa: E402

main.main(sys.argv[1:])
