"""Explains why a training process ended without a result: an error message with the cause and the fix."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from trainer.core.errors import HostSuspected, MachineFailed, RunFailed
from trainer.core.events import Crashed, Phase
from trainer.training.supervisor.failure_patterns import CAUSES, HOST_MEMORY, SHARED_MEMORY

Diagnosis: TypeAlias = RunFailed | MachineFailed

_LONGEST_QUOTE = 300  # characters
_TRACEBACK = re.compile(r"(?:Original )?Traceback \(most recent call last\)")
_RELAY_LINE = re.compile(r"Caught \w+ in DataLoader worker")
_HALVED_BATCH = re.compile(r"\(batch (\d+), image size")  # in the message of a training process that halved the batch
_EXCEPTION = re.compile(r"[\w.]+(?:Error|Exception)\b")
_ERROR_LINE = re.compile(
    r"error|exception|fatal|killed|cannot|failed|out of memory|no space|terminate called|what\(\)|\bxid\b",
    re.IGNORECASE,
)
_WARNING = re.compile(r"\bwarn", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The facts about a training process that ended without a result."""

    exit_code: int | None  # negative: the signal that ended the process
    phase: Phase
    crashed: Crashed | None = None  # the final event, if the process crashed and sent it
    output: Sequence[str] = ()  # the last lines of output
    epoch: int = 0  # the last reported epoch
    batch: int | float | None = None
    imgsz: int | None = None
    oom_kills: int = 0  # out-of-memory kills on this host since the training started
    free_disk: int | None = None  # bytes, on the disk of the run folder

    @property
    def signal(self) -> int:
        """The signal that ended the process, or 0. A shell or a launcher reports signal n as exit code 128 + n."""
        code = self.exit_code or 0
        return -code if code < 0 else code - 128 if 128 < code <= 128 + signal.SIGRTMAX else 0


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return the error for this evidence.

    It is a `RunFailed` if another attempt would fail in the same way, otherwise a `MachineFailed`. It is never a
    `HostFailed`, because code in the training process can choose all of this evidence.
    """
    crashed = evidence.crashed
    if _is_broken_installation(evidence):
        return _broken_installation(evidence)
    if crashed and (halved := _HALVED_BATCH.search(crashed.message)):
        evidence = replace(evidence, batch=int(halved[1]))
    if not crashed and evidence.signal == signal.SIGKILL and evidence.oom_kills:
        return _error(MachineFailed, HOST_MEMORY, evidence, "the kernel's out-of-memory killer ended the process")
    lines = _message_lines(crashed) if crashed else [line for line in evidence.output if _is_error(line)]
    for cause in CAUSES:
        for line in lines:
            if found := re.search(cause.pattern, line, re.IGNORECASE):
                return _error(cause.error, cause.sentence, evidence, line, **found.groupdict())
    return _unknown(crashed, evidence) if crashed else _ended_without_event(evidence)


def stuck(phase: Phase, epoch: int, seconds: float) -> MachineFailed:
    """Return the error of a process that was killed because it sent no event for longer than its phase allows."""
    if phase is Phase.STARTING:
        return HostSuspected(
            f"The training process was not ready after {seconds:.0f} s and was killed. Look at the end of the run's "
            "log. The usual causes are a slow disk for the Python packages and a GPU driver that hangs.",
        )
    return MachineFailed(
        f"The training was stuck: it made no progress for {seconds:.0f} s {_when(phase, epoch)}, so its process was "
        "killed. If one step can take that long, increase STALL_SECONDS.",
    )


def _is_broken_installation(evidence: Evidence) -> bool:
    """Return whether the process ended by itself while it started. Then every run on this host would fail."""
    if evidence.phase is not Phase.STARTING:
        return False  # a model or a dataset can be the cause, even if the output names another cause
    return evidence.crashed.is_installation if evidence.crashed else not evidence.signal


def _broken_installation(evidence: Evidence) -> HostSuspected:
    crashed = evidence.crashed
    last = f"{crashed.error}: {crashed.message}" if crashed else f"exit code {evidence.exit_code}: {_last_of(evidence)}"
    return HostSuspected(
        f"The training process ended while starting ({_short(last)}): install requirements.txt again, "
        "then run `doctor` on the host.",
    )


def _unknown(crashed: Crashed, evidence: Evidence) -> Diagnosis:
    first = _short(crashed.message.strip().split("\n", 1)[0])
    what = f"{crashed.error}: {first}" if first else crashed.error
    return _error(RunFailed, "The training failed {when} with {quote}; the run's log has the details.", evidence, what)


def _ended_without_event(evidence: Evidence) -> Diagnosis:
    last = _last_of(evidence)
    if evidence.signal == signal.SIGBUS:
        return _error(MachineFailed, SHARED_MEMORY, evidence, last)
    if evidence.signal == signal.SIGKILL:
        sentence = (
            "The training process was killed {when} (SIGKILL), most likely because the host ran out of memory. Use "
            "fewer workers or a smaller batch, or give the host more memory. The last output was: {quote}."
        )
    else:
        number = evidence.signal
        name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
        how = f"by {name}" if number else f"with exit code {evidence.exit_code}"
        sentence = f"The training process ended {{when}} without a result ({how}). The last output was: {{quote}}."
    return _error(MachineFailed, sentence, evidence, last)


def _last_of(evidence: Evidence) -> str:
    """Return the last output line that looks like an error, otherwise the last line, or "none" without output."""
    lines = [line for line in evidence.output if line.strip()]
    return next((line for line in reversed(lines) if _is_error(line)), lines[-1] if lines else "none")


def _error(error: type[Diagnosis], sentence: str, evidence: Evidence, quote: str, **found: str | None) -> Diagnosis:
    phase = evidence.crashed.phase if evidence.crashed else evidence.phase
    batch, imgsz, free = evidence.batch, evidence.imgsz, evidence.free_disk
    return error(
        sentence.format(
            when=_when(phase, evidence.epoch),
            quote=_short(quote),
            batch_hint=_batch_hint(batch, imgsz),
            size=f" at batch {batch:g}, image size {imgsz}" if batch and batch > 0 and imgsz else "",
            free="" if free is None else f" ({free / 2**30:.1f} GiB are free on the disk of the run folder)",
            package=found.get("package"),
        ),
    )


def _when(phase: Phase, epoch: int) -> str:
    return f"while {phase.value}" + (f" (epoch {epoch})" if epoch else "")


def _batch_hint(batch: float | None, imgsz: int | None) -> str:
    if batch == 1:
        return f"use a smaller image size than {imgsz}, or a smaller model"
    if batch is not None and 0 < batch < 1:
        return "give the batch as a number of images, or use a smaller image size or model"
    return "use a smaller batch, image size or model"


def _message_lines(crashed: Crashed) -> list[str]:
    """Return the lines of the message, and the lines of the tracebacks that name an exception.

    Source lines in a traceback are left out, because they could match unrelated patterns.
    """
    before, *behind = _TRACEBACK.split(f"{crashed.error}: {crashed.message}")
    tracebacks = "\n".join([*behind, crashed.traceback]).splitlines()
    own = [line for line in before.splitlines() if not _RELAY_LINE.search(line)]
    return [*own, *(line for line in tracebacks if _EXCEPTION.match(line))]


def _is_error(line: str) -> bool:
    return bool(_ERROR_LINE.search(line)) and not _WARNING.search(line)


def _short(line: str) -> str:
    line = " ".join(line.split()).rstrip(".")
    return line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + "…"
