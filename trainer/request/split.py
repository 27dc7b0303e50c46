"""How a row asks for its dataset to be split: shares, a seed, or the split of each image by name."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.core.dataset import SplitRequest
from trainer.core.job import Json
from trainer.core.text import shown
from trainer.request import arguments
from trainer.request.configuration import Configuration, Setting, squeezed

_RULE = 'an object like {"train_ratio": 0.8, "val_ratio": 0.2, "seed": 0}, whose shares are above 0 and sum up to 1'
_SHARE = arguments.number(0, 1)
_SEED = arguments.whole(0, 2**31 - 1)
_KEYS = {
    "trainratio": "train", "train": "train", "valratio": "val", "val": "val", "validationratio": "val",
    "testratio": "test", "test": "test", "seed": "seed", "randomseed": "seed", "splitseed": "seed",
    "ratio": "ratio", "ratios": "ratio", "defaultratio": "ratio", "splits": "assigned", "customsplits": "assigned",
    "method": "method", "source": "source",
}  # fmt: skip
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_split(found: Configuration) -> SplitRequest | None:
    """The split that the configuration asks for; None leaves the dataset's own."""
    given, seed = found.take("split"), found.value("split_seed", _SEED, 0)
    if given is None:
        return None
    if isinstance(given.value, str):
        _note_word(given, found)
        return None
    try:
        return _request(_fields(given, found), seed)
    except ValueError:
        found.wrong(given, _RULE)
        return None


def _note_word(given: Setting, found: Configuration) -> None:
    """Ultralytics' own `split` names the split to evaluate, which here is always val, and test when there is one."""
    if given.value.strip().lower() != "val":
        found.warnings.append(f"{given.spelling} = {shown(given.value)} was ignored: val and test are both evaluated")


def _fields(given: Setting, found: Configuration) -> dict[str, Json]:
    value = given.value
    if isinstance(value, Mapping):
        fields: dict[str, Json] = {}
        for key, item in value.items():
            name = _KEYS.get(squeezed(str(key)))
            if name is None:
                found.warnings.append(f"unknown setting {given.spelling}.{shown(str(key))[1:-1]} was ignored")
            else:
                fields.setdefault(name, item)
        return fields
    return {"ratio": value} if isinstance(value, list | tuple) else {"train": value}


def _request(fields: dict[str, Json], seed: int) -> SplitRequest | None:
    """The request of these fields. Raises ValueError when they make no sense."""
    if fields.get("method") in ("none", "use_dataset"):  # a tuple: the value may be unhashable
        return None
    assigned = _assigned(fields.get("assigned"))
    shares: dict[str, float] = {name: _SHARE.read(fields[name]) for name in ("train", "val", "test") if name in fields}
    if "ratio" in fields:
        shares = _listed(fields["ratio"]) | shares
    test = shares.get("test", 0.0)
    val = shares.get("val", 1.0 - shares["train"] - test if "train" in shares else 0.2)
    train = shares.get("train", 1.0 - val - test)
    if train <= 0 or val < 1e-9 or abs(train + val + test - 1.0) > 0.011:
        raise ValueError(fields)
    return SplitRequest(
        train_ratio=train,
        test_ratio=test,
        seed=_SEED.read(fields.get("seed", seed)),
        assigned=assigned,
    )


def _listed(ratio: Json) -> dict[str, float]:
    if not isinstance(ratio, list | tuple) or len(ratio) not in {2, 3}:
        raise ValueError(ratio)
    return dict(zip(("train", "val", "test"), map(_SHARE.read, ratio), strict=False))


def _assigned(splits: Json) -> dict[str, str]:
    if splits is None:
        return {}
    if not isinstance(splits, Mapping) or len(splits) > 1_000_000:
        raise ValueError(splits)
    found = {str(image): _SPLITS.get(str(split).strip().lower()) for image, split in splits.items()}
    if None in found.values():
        raise ValueError(splits)
    return {image: split for image, split in found.items() if split}
