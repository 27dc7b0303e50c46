"""All environment variables of the service. They are read once, at the start.

`.env.example` and `docs/settings.md` also contain the names, defaults and meanings; tests/test_docs.py compares them.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trainer.core.errors import Misconfigured

Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except (RuntimeError, OSError) as error:  # the user has no home directory, or the working directory was deleted
        raise ValueError(f"cannot be made absolute ({error}); set it to a path that starts with /") from None


Folder = Annotated[Path, AfterValidator(_absolute)]
# a comma-separated list
Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(
        lambda text: tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text
    ),
]
_SANDBOX = {  # the values of earlier versions
    **dict.fromkeys(("1", "true", "yes", "on", "y", "t"), "auto"),
    **dict.fromkeys(("false", "no", "off", "n", "f"), "0"),
}
Sandbox = Annotated[
    Literal["required", "auto", "0"], BeforeValidator(lambda text: _SANDBOX.get(str(text).lower(), str(text).lower()))
]


class Settings(BaseSettings):
    """The configuration of the service. Paths are absolute."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True)

    # queue and storage
    backend: Literal["auto", "supabase", "local"] = "auto"
    supabase_url: str | None = None
    supabase_service_role_key: SecretStr | None = None
    supabase_anon_key: SecretStr | None = None  # only required with a key of the restricted role
    supabase_datasets_bucket: str = "datasets"
    supabase_artifacts_bucket: str = "training-artifacts"
    allowed_buckets: Names = ()  # in addition to the datasets bucket
    datasets_by_owner: bool = False
    fine_tune_from: Literal["owner", "project", "any"] = "owner"
    worker_id: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)

    # folders
    trainer_home: Folder = Path("~/.yolo-trainer")
    dataset_root: Folder | None = None  # TRAINER_HOME/datasets
    extra_dataset_roots: Names = ()
    runs_dir: Folder | None = None  # TRAINER_HOME/runs
    models_dir: Folder | None = None  # TRAINER_HOME/models

    # times, in seconds
    poll_interval: Seconds = 10
    heartbeat_interval: Seconds = 10
    progress_interval: Seconds = 10
    cancel_check_interval: Seconds = 5
    lease_seconds: Seconds = 60
    cancel_grace: Seconds = 10
    drain_seconds: Seconds = 90
    checkpoint_interval: Seconds = 300
    stall_seconds: Seconds = 1800

    # training
    slots: int = Field(default=0, ge=0, le=64)  # 0: one slot per visible GPU, or one slot on a CPU host
    warm_start: bool = True
    fast_loader: bool = True
    sandbox: Sandbox = "auto"
    allow_weights_download: bool = True
    allowed_dataset_hosts: Names = ()

    # housekeeping
    keep_runs_days: float = Field(default=14, ge=0)
    dataset_cache_gb: float = Field(default=50, ge=0)
    keep_run_datasets: bool = False

    # logs and metrics
    log_format: Literal["auto", "console", "json", "journal"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    timestamp_streams: bool = True
    metrics_port: int = Field(default=0, ge=0, le=65_535)  # 0: off

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.uses_supabase:
            missing = [n for n in ("supabase_url", "supabase_service_role_key") if not getattr(self, n)]
            if missing:
                names = " and ".join(name.upper() for name in missing)
                them = "it" if len(missing) == 1 else "them"
                raise ValueError(f"BACKEND={self.backend} needs {names}; set {them}, or set BACKEND=local")
        if self.supabase_artifacts_bucket in (self.supabase_datasets_bucket, *self.allowed_buckets):
            raise ValueError(
                f"the bucket {self.supabase_artifacts_bucket} cannot contain both artifacts and datasets, because any "
                "row could then read the models of other users; choose another bucket for the datasets"
            )
        for name in ("runs_folder", "models_folder"):
            if self.datasets_folder == getattr(self, name):
                variable = name.replace("folder", "dir").upper()
                raise ValueError(f"{variable} and DATASET_ROOT are the same folder; set {variable} to its own folder")
        # otherwise the lease could expire after a single slow answer
        if self.lease_seconds < 3 * self.cancel_check_interval:
            raise ValueError(
                f"LEASE_SECONDS={self.lease_seconds:g} must be at least three times "
                f"CANCEL_CHECK_INTERVAL={self.cancel_check_interval:g}",
            )
        return self

    @property
    def uses_supabase(self) -> bool:
        return self.backend == "supabase" or (self.backend == "auto" and bool(self.supabase_url))

    @property
    def datasets_folder(self) -> Path:
        return self.dataset_root or self.trainer_home / "datasets"

    @property
    def runs_folder(self) -> Path:
        return self.runs_dir or self.trainer_home / "runs"

    @property
    def models_folder(self) -> Path:
        return self.models_dir or self.trainer_home / "models"


def read_settings() -> Settings:
    """Return the settings of this process, from its environment and `.env`.

    Raises Misconfigured with one line per invalid variable. The lines contain no secret values.
    """
    if named := Settings.model_config.get("env_file"):
        _check_environment_file(Path(str(named)))
    try:
        return Settings()
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors(include_url=False, include_context=False)]
        raise Misconfigured("\n".join(lines)) from None


def misspelled_settings() -> dict[str, str]:
    """Return the unknown variables of the environment and of `.env` that resemble a setting, with that setting."""
    path = Path(str(Settings.model_config.get("env_file") or "/dev/null"))
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    names = {*os.environ, *re.findall(r"^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=", text, re.MULTILINE | re.ASCII)}
    settings = {name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in names if name.upper() not in settings)
    nearest = {name: difflib.get_close_matches(name.upper(), settings, n=1, cutoff=0.85) for name in unknown}
    return {name: found[0] for name, found in nearest.items() if found}


def _check_environment_file(path: Path) -> None:
    """Raise Misconfigured if the file exists but cannot be read as settings."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode):
            return  # /dev/null means no file
        if not stat.S_ISREG(mode):
            raise ValueError("it is not a regular file")
        if "\0" in path.read_text(encoding="utf-8"):
            raise ValueError("it contains NUL bytes")
    except FileNotFoundError:
        if path.is_symlink():
            raise Misconfigured(
                f"{path} is a link to a file that does not exist; create the file or remove the link."
            ) from None
    except (OSError, ValueError) as error:
        raise Misconfigured(
            f"{path} in the working directory cannot be read as settings ({error}); "
            "fix it, or remove it and set environment variables instead.",
        ) from None


def _explain(problem: Mapping[str, object]) -> str:
    location = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return message
    name = str(location[0]).upper()
    given = problem.get("input")
    value = "" if "KEY" in name else f"={str(given) if isinstance(given, Path) else given!r:.80}"
    return f"{name}{value}: {message[0].lower()}{message[1:]}"


def service_manager() -> tuple[str | None, float | None]:
    """Return the notify socket of systemd and the watchdog timeout in seconds, each None if systemd did not set it."""
    watchdog = os.environ.get("WATCHDOG_USEC", "")
    microseconds = int(watchdog) if watchdog.isascii() and watchdog.isdigit() and len(watchdog) < 20 else 0
    return os.environ.get("NOTIFY_SOCKET") or None, microseconds / 1e6 or None


def journal_reads(fd: int) -> bool:
    """Return whether this file descriptor is connected to journald."""
    about = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def process_environment() -> Mapping[str, str]:
    """Return the environment of this process. Training processes receive only a part (supervisor/environment.py)."""
    return dict(os.environ)
