"""Helpers for the tests of names in rows: the datasets of a service with the rules for Supabase."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

from trainer.core.dataset import DatasetOrder
from trainer.core.stop import StopSignal
from trainer.settings import Settings
from trainer.wiring.backend import open_backend
from trainer.wiring.datasets import build_datasets


def settings_in(folder, **values):
    supabase = {"supabase_url": "https://abc.supabase.co", "supabase_service_role_key": "k", "backend": "supabase"}
    return Settings.model_validate({**supabase, "trainer_home": folder / "home", **values})


@contextmanager
def service(settings):
    """Yield the datasets of a service with the rules for Supabase, whose objects are in a folder."""
    with ExitStack() as opened:
        local = opened.enter_context(open_backend(settings.model_copy(update={"backend": "local"}), StopSignal()))
        yield build_datasets(settings, local, opened)


def prepared(datasets, reference, **order):
    folder = datasets.rules.roots.dataset_root / "datasets" / f"run_{reference.encode().hex()[-40:]}"
    return datasets.prepare(DatasetOrder(sources=(reference,), **order), folder, StopSignal(), lambda _: None)
