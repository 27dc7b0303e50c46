"""The runs and objects from which a run may start.

A row is untrusted: its author must not read the models of other users. Which runs a row may start from depends on
FINE_TUNE_FROM:

owner     runs with the same `created_by`; rows without `created_by` count as one owner, the service itself
project   also runs with the same `project_id`, which the author of a row chooses freely
any       every run, and every object of the artifacts bucket
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trainer.core.artifact_keys import ROOT, run_of_key
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest
from trainer.core.job import Requester, Status
from trainer.core.results import artifacts_in
from trainer.core.run_folder import BEST
from trainer.core.run_row import RunRow

Scope: TypeAlias = Literal["owner", "project", "any"]
SHARED = "models"  # every row may start from the objects in this folder of the artifacts bucket


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Checks that a row may start from a run or an object. `run_of` returns the row of a run."""

    run_of: Callable[[str], RunRow | None]
    artifacts_bucket: str
    scope: Scope

    def best_of(self, run_id: str, requester: Requester) -> tuple[ObjectRef, str | None]:
        """Return the object with best.pt of a completed run, and its SHA-256 if the row has it. Raises BadRequest."""
        row = self._run(run_id, requester, run_id)
        if row.status != Status.COMPLETED:
            raise BadRequest(
                f"base_model = {run_id}: the status of that run is {row.status}; only a completed run has a model"
            )
        for artifact in artifacts_in(row.results):
            # other programs can write the results of a row, so the key is not trusted
            if artifact.name == BEST and (self.scope == "any" or run_of_key(artifact.path) == run_id):
                is_digest = re.fullmatch(r"[0-9a-f]{64}", str(artifact.sha256))
                return artifact.ref(self.artifacts_bucket), artifact.sha256 if is_digest else None
        raise BadRequest(f"base_model = {run_id}: that run published no best.pt; use another run")

    def require_object(self, key: str, requester: Requester) -> None:
        """Raise BadRequest if the row must not start from the object `key` of the artifacts bucket."""
        if self.scope == "any" or key.startswith(f"{SHARED}/"):
            return
        run_id = run_of_key(key)
        if run_id is None:
            raise BadRequest(
                f"base_model = storage:{key}: a row can start only from objects in {ROOT}/RUN_ID/ of a run of its owner, or in "
                f"{SHARED}/; let the operator move the object to {SHARED}/"
            )
        row = self._run(run_id, requester, f"storage:{key}")
        # a deleted row can have had the same ID, so the own objects of a run are those that its row lists
        checkpoint = row.checkpoint.get("key") if isinstance(row.checkpoint, dict) else None
        if key not in (checkpoint, *(artifact.path for artifact in artifacts_in(row.results))):
            raise BadRequest(
                f"base_model = storage:{key}: the row of that run does not list this object; use the ID of the run, or "
                "the `path` of one of its artifacts"
            )

    def _run(self, run_id: str, requester: Requester, name: str) -> RunRow:
        """Return the row of a run. The message for a run of another owner is the message for a missing run."""
        row = self.run_of(run_id)
        if row is None or not self._may_use(row, requester):
            raise BadRequest(
                f"base_model = {name}: there is no run with this id among the runs of the owner of this row; "
                "use the ID of a completed run of this owner"
            )
        return row

    def _may_use(self, row: RunRow, requester: Requester) -> bool:
        is_same_project = requester.project_id is not None and row.project_id == requester.project_id
        return (
            self.scope == "any"
            or row.created_by == requester.created_by
            or (self.scope == "project" and is_same_project)
        )  # fmt: skip
