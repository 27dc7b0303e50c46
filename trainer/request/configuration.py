"""A row's `configuration` as one flat set of settings: unnested, spellings mapped, every disagreement noticed.

Only names are interpreted here; arguments.py and plan.py decide what a value must be. A blank value (null, "", "  ", [],
{}) means "not given" for every setting, and is removed here, so that no other rule has to know about it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from trainer.core.job import Json
from trainer.core.json_text import TOO_DEEP, is_too_deep, json_from_text
from trainer.core.text import shown
from trainer.request import arguments

T = TypeVar("T")

_MOST_HINTS = 50
_DEEPEST_BLANK = 3  # levels inside a setting that are searched for blank values

# sections that people nest settings into
_SECTIONS = frozenset(
    {
        *("advancedconfig", "hyperparameters", "hyperparams", "params", "fitparams", "trainparams", "args"),
        *("overrides", "augmentation", "augmentations", "optimizer", "scheduler", "validation"),
    },
)
_IN_SECTION: Mapping[tuple[str, str], str] = MappingProxyType({("optimizer", "type"): "optimizer"})

# the name used here → its other spellings, without case, "_" and "-"
_SPELLINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "batch": ("batchsize", "trainbatchsize", "bs"),
        "imgsz": ("imgsize", "imagesize", "inputsize", "imagesz"),
        "lr0": ("lr", "learningrate", "initiallr", "initiallearningrate"),
        "epochs": ("numepochs", "nepochs", "totalepochs", "epoch"),
        "base_model": ("model", "modelname", "modelspec", "weights"),
        "data": ("datayaml", "datasetyaml", "datasets3uri", "dataseturi", "datasetpath"),
        "task": ("modeltask", "trainingtask", "tasktype"),
        "optimizer": ("optimizertype", "optim"),
        "split": ("splitconfig", "splitstrategy", "splitratio"),
        "exports": ("export", "exportformats", "exportformat"),
        "predictions": ("savepredictions",),
        "amp": ("mixedprecision",),
        "workers": ("numworkers",),
        "seed": ("randomseed",),
        "patience": ("earlystoppingpatience",),
        "save_period": ("checkpointinterval",),
        "cos_lr": ("cosinelr",),
        "preset": ("augmentation",),  # given as a word instead of an object
    },
)
# settings that are not train arguments
_OWN = frozenset(
    {
        *("base_model", "data", "task", "device", "compute", "epochs", "batch", "imgsz", "pretrained", "split"),
        *("split_seed", "exports", "predictions", "requires", "run_name", "optimization_strategy", "bayesian_config"),
        "preset",
    },
)
_NAMES = _OWN | set(arguments.ALLOWED) | set(arguments.REFUSED) | set(arguments.IGNORED)


def squeezed(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


_BY_SQUEEZED = {squeezed(name): name for name in _NAMES} | {
    spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings
}


def is_blank(value: Json) -> bool:
    """Whether a value means "not given". 0 and false are values."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple | Mapping) and not value)


def without_blanks(value: Json, depth: int = _DEEPEST_BLANK) -> Json:
    """A value without the blank entries of the objects in it; lists keep theirs, because position matters there."""
    if not isinstance(value, Mapping) or depth == 0:
        return value
    kept = {key: without_blanks(item, depth - 1) for key, item in value.items()}
    return {key: item for key, item in kept.items() if not is_blank(item)}


def is_left_open(value: object) -> bool:
    """Whether a value is a word that leaves the choice to the service."""
    return isinstance(value, str) and value.strip().lower() in {"", "auto", "none", "null", "default"}


@dataclass(frozen=True)
class Setting:
    """A value and the spelling under which it was given; the deeper its section, the more it was meant."""

    spelling: str
    value: Json
    depth: int


@dataclass
class Configuration:
    """The settings by name, and what was found wrong or odd while reading them."""

    settings: dict[str, Setting] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, raw: Json) -> Configuration:
        """Flatten a configuration that is an object, JSON text of one, JSON text of such text, or null."""
        found = cls()
        content = found._object("configuration", raw)
        for setting in found._walk(content or {}):
            found._settle(*setting)
        return found

    def take(self, name: str) -> Setting | None:
        return self.settings.pop(name, None)

    def value(self, name: str, rule: arguments.Rule[T], default: T) -> T:
        """The value of a setting by its rule; `default` when it is not given, or wrong (which becomes a problem)."""
        given = self.take(name)
        if given is None:
            return default
        try:
            return rule.read(given.value)
        except ValueError:
            self.wrong(given, rule.text)
            return default

    def wrong(self, given: Setting, rule: str) -> None:
        self.problems.append(f"{given.spelling} = {shown(given.value)}: must be {rule}")

    def _object(self, where: str, raw: Json) -> dict[str, Json] | None:
        for _ in range(3):
            if not isinstance(raw, str) or is_blank(raw):
                break
            try:
                raw = json_from_text(raw)
            except ValueError as error:
                self.problems.append(f"{where} = {shown(raw, 60)}: cannot be read: {error}")
                return None
        if is_blank(raw):
            return None
        if not isinstance(raw, Mapping):
            self.problems.append(f'{where} = {shown(raw)}: must be a JSON object like {{"epochs": 50}}')
            return None
        if is_too_deep(raw):
            self.problems.append(f"{where}: {TOO_DEEP}")
            return None
        return {str(key): value for key, value in raw.items()}

    def _walk(
        self, content: Mapping[str, Json], section: str = "", path: str = "", depth: int = 0
    ) -> Iterator[tuple[str, Setting]]:
        for key, given in content.items():
            value = without_blanks(given)
            if is_blank(value):
                continue
            label = shown(key)[1:-1]
            spelling = f"{path}{label}"
            word = squeezed(key)
            nested = isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip().startswith("{"))
            if word in _SECTIONS and nested and depth < 3:
                inner = self._object(spelling, value)
                yield from self._walk(inner or {}, word, f"{spelling}.", depth + 1)
                continue
            name = _IN_SECTION.get((section, word)) or _BY_SQUEEZED.get(word)
            if name is None:
                self._unknown(spelling, word)
            else:
                yield name, Setting(spelling, value, depth)

    def _unknown(self, spelling: str, word: str) -> None:
        few = len(self.warnings) < _MOST_HINTS  # looking for a similar name takes a millisecond
        close = difflib.get_close_matches(word[:40], _BY_SQUEEZED, n=1, cutoff=0.75) if few else []
        hint = f"; did you mean {_BY_SQUEEZED[close[0]]}?" if close else ""
        self.warnings.append(f"unknown setting {spelling} was ignored{hint}")

    def _settle(self, name: str, new: Setting) -> None:
        """Keep one of two spellings: equal values agree, a nested one is more specific, otherwise it is a problem."""
        old = self.settings.get(name)
        if old is None or shown(old.value) == shown(new.value):
            self.settings.setdefault(name, new)
        elif old.depth != new.depth:
            winner, loser = (new, old) if new.depth > old.depth else (old, new)
            self.settings[name] = winner
            self.warnings.append(
                f"{loser.spelling} = {shown(loser.value)} was ignored: "
                f"{winner.spelling} = {shown(winner.value)} is more specific",
            )
        else:
            self.problems.append(
                f"{old.spelling} = {shown(old.value)} and {new.spelling} = {shown(new.value)}: "
                "two spellings of the same setting must agree; keep one",
            )
