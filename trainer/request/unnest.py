"""Flattens the `configuration` of a row: settings in sections become one flat set with the names of `RunConfiguration`.

This module interprets the names of settings, not their values. But it removes blank values (null, "", "  ", [], {}),
which mean "not given" for every setting, so that no other rule has to handle them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import AliasChoices, BaseModel

from trainer.core.job import Json
from trainer.core.json_text import TOO_DEEP, is_too_deep, json_from_text
from trainer.core.text import printable, shown
from trainer.request.configuration import RunConfiguration
from trainer.request.split import Split
from trainer.request.train_arguments import IGNORED, REFUSED

_MOST_HINTS = 50
_DEEPEST_SECTION = 3

# sections that can contain settings
SECTIONS = frozenset(
    {
        *("training", "trainingconfig", "train", "trainparams", "config", "configuration", "advancedconfig"),
        *("hyperparameters", "hyperparams", "params", "fitparams", "args", "overrides"),
        *("augmentation", "augmentations", "optimizer", "scheduler", "validation"),
    },
)


def squeezed(name: str) -> str:
    """Return a normalized name for comparisons: the same for `batchSize`, `batch_size` and `BATCH-SIZE`."""
    return re.sub(r"[\s_-]+", "", name.lower())


def aliases_of(model: type[BaseModel], name: str) -> list[str]:
    """Return the other names of a field."""
    alias = model.model_fields[name].validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []


def _by_spelling(model: type[BaseModel], others: Iterable[str] = ()) -> dict[str, str]:
    names = [*model.model_fields, *others]
    aliases = {squeezed(alias): name for name in model.model_fields for alias in aliases_of(model, name)}
    return aliases | {squeezed(name): name for name in names}


_NAMES = _by_spelling(RunConfiguration, [*REFUSED, *IGNORED])
_SPLIT_NAMES = _by_spelling(Split)


def is_blank(value: Json) -> bool:
    """Return whether a value means "not given". 0 and false are values."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple | Mapping) and not value)


def _without_blanks(value: Json) -> Json:
    """Return a value without the blank entries of its objects; lists keep blank entries, because positions matter."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: _without_blanks(item) for key, item in value.items()}
    return {key: item for key, item in kept.items() if not is_blank(item)}


@dataclass(frozen=True)
class Given:
    """A value and the name under which it was given; a value in a deeper section has priority."""

    spelling: str
    value: Json
    depth: int = 0

    def __str__(self) -> str:
        return f"{self.spelling} = {shown(self.value)}"


@dataclass
class Unnested:
    """The settings of a configuration by name, and the problems and warnings about their names."""

    settings: dict[str, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, raw: Json) -> Unnested:
        """Flatten a configuration: an object, its JSON text, the JSON text of that text, or null."""
        found = cls()
        for name, given in found._walk(found._object("configuration", raw)):
            found._add(name, given)
        return found

    def _object(self, where: str, raw: Json) -> Mapping[str, Json]:
        for _ in range(3):
            if not isinstance(raw, str) or is_blank(raw):
                break
            try:
                raw = json_from_text(raw)
            except ValueError as error:
                self.problems.append(f"{where} = {shown(raw, 60)}: cannot be read: {error}")
                return {}
        if is_blank(raw):
            return {}
        if not isinstance(raw, Mapping):
            self.problems.append(f'{where} = {shown(raw)}: must be a JSON object like {{"epochs": 50}}')
            return {}
        if is_too_deep(raw):
            self.problems.append(f"{where}: {TOO_DEEP}")
            return {}
        return {str(key): value for key, value in raw.items()}

    def _walk(
        self, content: Mapping[str, Json], section: str = "", path: str = "", depth: int = 0
    ) -> Iterator[tuple[str, Given]]:
        for key, given in content.items():
            value = _without_blanks(given)
            if is_blank(value):
                continue
            spelling, word = f"{path}{printable(key, 80)}", squeezed(key)
            nested = isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip().startswith("{"))
            if word in SECTIONS and nested and depth < _DEEPEST_SECTION:
                yield from self._walk(self._object(spelling, value), word, f"{spelling}.", depth + 1)
                continue
            name = "optimizer" if (section, word) == ("optimizer", "type") else self._name(spelling, word, _NAMES)
            if name == "split" and isinstance(value, Mapping):
                value = self._split(spelling, value)
            if name:
                yield name, Given(spelling, value, depth)

    def _split(self, path: str, value: Mapping[str, Json]) -> dict[str, Json]:
        named = {
            self._name(f"{path}.{printable(str(key), 80)}", squeezed(str(key)), _SPLIT_NAMES): item
            for key, item in reversed(list(value.items()))
        }
        return {name: item for name, item in named.items() if name}

    def _name(self, spelling: str, word: str, names: Mapping[str, str]) -> str | None:
        if word in names:
            return names[word]
        few = len(self.warnings) < _MOST_HINTS  # the search for a similar name takes a millisecond, so it is limited
        close = difflib.get_close_matches(word[:40], names, n=1, cutoff=0.75) if few else []
        hint = f"; did you mean {names[close[0]]}?" if close else ""
        self.warnings.append(f"unknown setting {spelling} was ignored{hint}")
        return None

    def _add(self, name: str, new: Given) -> None:
        """Add a setting. If it was given before, the value in the deeper section has priority.

        Different values at the same depth are a problem.
        """
        old = self.settings.setdefault(name, new)
        if old is new or old.value == new.value:
            return
        if old.depth == new.depth:
            self.problems.append(f"{old} and {new}: two spellings of the same setting must agree; keep one")
            return
        winner, loser = (new, old) if new.depth > old.depth else (old, new)
        self.settings[name] = winner
        self.warnings.append(f"{loser} was ignored: {winner} is in a deeper section")
