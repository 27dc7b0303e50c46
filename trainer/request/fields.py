"""The kinds of setting values: each has a pydantic type, a normalization, and a rule in words.

The `Rule` in `Annotated` first normalizes a value ("16" and 16.0 become 16), then the annotated type checks it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AliasChoices, Field, GetCoreSchemaHandler, StringConstraints, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

_TRUE = frozenset({"true", "1", "yes", "y", "on"})
_FALSE = frozenset({"false", "0", "no", "n", "off"})
_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})(e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)
_MOST_ITEMS = 1000


def setting(default: object, description: str, *aliases: str) -> Any:
    """Return the field of a setting; `aliases` are its other names, in any style (`batchSize` is also `batch_size`)."""
    return Field(default=default, description=description, validation_alias=AliasChoices(*aliases) if aliases else None)


@dataclass(frozen=True, eq=False)
class Rule:
    """The rule of a value in words, and its normalization. `normalize` raises ValueError for an unreadable value."""

    text: str
    normalize: Callable[[Any], object] = lambda value: value
    kind: CoreSchema | None = None  # checks the normalized value; None: the annotated type checks it

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.normalize, self.kind or handler(source))


def rule_of(field: FieldInfo) -> str:
    """Return the rule of a field's value, in words."""
    return next((mark.text for mark in field.metadata if isinstance(mark, Rule)), "anything")


def number(value: object) -> int | float:
    """Return a finite number, which may be given as text. A whole number becomes an int."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or not math.isfinite(value):
        raise ValueError("not a finite number")
    return int(value) if value == int(value) else value


def flag(value: object) -> bool:
    """Return true or false, which may be given as a word or as 1 or 0."""
    text = str(value).strip().lower() if isinstance(value, str | int) else ""
    if text not in _TRUE | _FALSE:
        raise ValueError("neither true nor false")
    return text in _TRUE


def chance(value: object) -> float:
    """Return a number. True and false become 1 and 0."""
    is_word = isinstance(value, str) and not _NUMBER.fullmatch(value.strip())
    return float(flag(value)) if is_word or isinstance(value, bool) else number(value)


def word(value: object) -> str:
    """Return a text in lower case, without spaces at its ends."""
    if not isinstance(value, str):
        raise ValueError("not text")  # noqa: TRY004 - pydantic expects ValueError
    return value.strip().lower()


def numbers(value: object) -> object:
    """Return a number, or a list with its numbers normalized."""
    if not isinstance(value, list | tuple):
        return number(value)
    if len(value) > _MOST_ITEMS:
        raise ValueError("too many items")
    return [number(item) if _is_number(item) else item for item in value]


def _is_number(item: object) -> bool:
    if isinstance(item, str):
        return _NUMBER.fullmatch(item.strip()) is not None
    return isinstance(item, int | float)


def _flag_or(*words: str) -> Callable[[object], bool | str]:
    def normalize(value: object) -> bool | str:
        return word(value) if isinstance(value, str) and word(value) in words else flag(value)

    return normalize


def _batch(value: object) -> int | float:
    return -1 if isinstance(value, str) and word(value) == "auto" else number(value)


def _fraction(value: object) -> object:
    found = numbers(value)
    if isinstance(found, list) and not all(found[:2]):
        raise ValueError("no images for train or for val")
    return found


def _zoom_factors(value: object) -> object:
    found = numbers(value)
    if isinstance(found, list) and not (len(found) == 2 and all(map(_is_number, found)) and 0 < found[0] <= found[1]):
        raise ValueError("not [minimum, maximum]")
    return found


def _layers(value: object) -> object:
    found = numbers(value)
    if not isinstance(found, list) or not isinstance(value, list | tuple):
        return found
    # "23.0" is the name of a part of layer 23
    return [item if isinstance(item, str) and "." in item else layer for item, layer in zip(value, found, strict=True)]


def _classes(value: object) -> object:
    found = numbers(value)
    return found if isinstance(found, list) else [found]


def whole(low: int, high: int) -> Rule:
    """Return the rule of a whole number in [low, high]."""
    kind = core_schema.int_schema(strict=True, ge=low, le=high)
    return Rule(f"a whole number from {low} to {high}", number, kind)


def between(low: float, high: float, normalize: Callable[[object], float] = number) -> Rule:
    """Return the rule of a finite number in [low, high]."""
    return Rule(f"a number from {low:g} to {high:g}", normalize, core_schema.float_schema(ge=low, le=high))


def above_zero(high: float) -> Rule:
    """Return the rule of a number above 0 and up to `high`."""
    return Rule(f"a number above 0 and up to {high:g}", number, core_schema.float_schema(gt=0, le=high))


def one_of(*names: str) -> Rule:
    """Return the rule of a choice among names. Upper and lower case are not distinguished."""
    by_word = {name.lower(): name for name in names}
    kind = core_schema.literal_schema(list(names))
    return Rule(f"one of {', '.join(names)}", lambda value: by_word.get(word(value), ""), kind)


Flag: TypeAlias = Annotated[bool, Rule("true or false", flag)]
Share: TypeAlias = Annotated[float, between(0, 1)]
Chance: TypeAlias = Annotated[float, between(0, 1, chance)]
Gain: TypeAlias = Annotated[float, between(0, 1000)]
Seed: TypeAlias = Annotated[int, whole(0, 2**31 - 1)]
Batch: TypeAlias = Annotated[
    Literal[-1] | Annotated[int, Field(ge=1, le=4096)] | Annotated[float, Field(gt=0, lt=1)],
    Rule("a whole number from 1 to 4096, -1 (automatic), or a share of the GPU memory between 0 and 1", _batch),
]
Cache: TypeAlias = Annotated[
    bool | Literal["ram", "disk"], Rule("true, false, 'ram' or 'disk'", _flag_or("ram", "disk"))
]
Amp: TypeAlias = Annotated[
    bool | Literal["fp16", "bf16", "fp32"],
    Rule("true, false, 'fp16', 'bf16' or 'fp32'", _flag_or("fp16", "bf16", "fp32")),
]
Kept: TypeAlias = Annotated[Literal[True], Rule("true: a run needs its checkpoints to resume", flag)]
_Images = Annotated[int, Field(gt=1, le=10**9)]
Fraction: TypeAlias = Annotated[
    Annotated[float, Field(gt=0, le=1)]
    | _Images
    | Annotated[list[Annotated[float, Field(ge=0, le=1)] | _Images], Field(min_length=2, max_length=3)],
    Rule("a share above 0 and up to 1, a number of images, or [train, val] of these", _fraction),
]
_Layer = Annotated[int, Field(ge=0, le=1000)]
_LayerName = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}(\.[0-9A-Za-z_]{1,40}){1,8}$")]
Freeze: TypeAlias = Annotated[
    _Layer | Annotated[list[_Layer | _LayerName], Field(max_length=_MOST_ITEMS)],
    Rule("a number of layers, or a list of layer indices (0 to 1000) or names like '23.cv2'", _layers),
]
Scale: TypeAlias = Annotated[
    Annotated[float, Field(ge=0, le=1)]
    | Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=2, max_length=2)],
    Rule("a number from 0 to 1, or [minimum, maximum] zoom factors above 0 and up to 10", _zoom_factors),
]
_CLASS = {"type": "integer", "minimum": 0, "maximum": 99_999}
Classes: TypeAlias = Annotated[
    Annotated[list[Annotated[int, Field(ge=0, lt=100_000)]], Field(min_length=1, max_length=_MOST_ITEMS)],
    Rule("a class index, or a list of class indices", _classes),
    WithJsonSchema({"anyOf": [_CLASS, {"type": "array", "items": _CLASS, "minItems": 1, "maxItems": _MOST_ITEMS}]}),
]
