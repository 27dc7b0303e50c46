"""The numbers of the system calls that a confined process may not use, or only with some arguments (see seccomp.py)."""

from __future__ import annotations

from types import MappingProxyType

# machine → value of AUDIT_ARCH
ARCHITECTURES = MappingProxyType({"x86_64": 0xC000003E, "aarch64": 0xC00000B7})

# name → number on x86_64, number on aarch64 (None: the system call does not exist there)
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # calls that are refused with some arguments; they are frequent, so the filter compares them first
    "ioctl": (16, 29), "fcntl": (72, 25), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "seccomp": (317, 277),
    # memory and descriptors of other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    # limits and scheduling, also of other processes
    "prlimit64": (302, 261), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # namespaces and mounts
    "clone": (56, 220), "clone3": (435, 435), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51),
    "pivot_root": (155, 41), "mount": (165, 40), "umount2": (166, 39), "move_mount": (429, 429),
    "open_tree": (428, 428), "open_tree_attr": (467, 467), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # parts of the kernel that a training does not need; io_uring would bypass this filter
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # memory and messages that other processes of the user can find by number or name
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    # attributes of files that Landlock lets the process only read
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # notifications about files that the process cannot read
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "inotify_rm_watch": (255, 28), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    # sockets
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203),
    # processes, signals, memory, and disk space without a write: only a process that reads datasets does not need them
    # (see PROCESSES)
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "fallocate": (285, 47),
}  # fmt: skip

# the calls that start, replace or signal a process, create a file in memory, or reserve disk space
PROCESSES = frozenset(
    {
        "fork", "vfork", "execve", "execveat", "memfd_create", "memfd_secret", "kill", "tkill", "tgkill",
        "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "fallocate",
    }
)  # fmt: skip


def numbers(machine: str) -> dict[str, int]:
    """Return the number of each system call in the table that exists on the machine, by name."""
    column = list(ARCHITECTURES).index(machine)
    return {name: number for name, both in _NUMBERS.items() if (number := both[column]) is not None}
