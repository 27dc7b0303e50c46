"""The training process with an audit hook, which prints each use of the network and each start of a program."""

import sys

WATCHED = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
)


def audit(event, args):
    if event in WATCHED:
        print(f"AUDIT {event} {args}", file=sys.stderr, flush=True)


sys.addaudithook(audit)

from trainer.training.child import main  # noqa: E402

main.main(sys.argv[1:])
