"""The split that a row requests for its dataset: shares and a seed, or the split of each image by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.core.dataset import SplitRequest
from trainer.request.fields import Rule, Seed, Share, setting

SPLIT_RULE = (
    'an object like {"train_ratio": 0.8, "val_ratio": 0.2, "seed": 0}; '
    "its shares sum up to 1, and train and val are above 0"
)
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHARES = ("train_ratio", "val_ratio", "test_ratio")
_AS_IT_IS = ("none", "use_dataset")


def _assigned(splits: object) -> dict[str, str]:
    if not isinstance(splits, Mapping) or len(splits) > 1_000_000:
        raise ValueError("not an object, or too large")
    found = {str(image): _SPLITS.get(str(split).strip().lower(), "") for image, split in splits.items()}
    if "" in found.values():
        raise ValueError("no such split")
    return found


def split_fields(value: object) -> object:
    """Return the fields of a split. `value` is an object, one share or a list of shares."""
    if isinstance(value, list | tuple):
        return {"ratio": value}
    if not isinstance(value, Mapping):
        return {"train_ratio": value}
    # `_AS_IT_IS` is a tuple, because the method may be unhashable
    return {"method": "none"} if value.get("method") in _AS_IT_IS else value


class Split(BaseModel):
    """Shares of the images for train, val and test, or the split of each image."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)

    train_ratio: Share = setting(0.8, "Share of the images for the train split.", "train")
    val_ratio: Share = setting(0.2, "Share of the images for the val split.", "val", "validationRatio")
    test_ratio: Share = setting(0.0, "Share of the images for the test split.", "test")
    ratio: Annotated[list[Share], Field(min_length=2, max_length=3), Rule("a list of two or three shares")] = setting(
        None, "The shares as a list: train, val, test.", "ratios", "defaultRatio"
    )
    seed: Seed = setting(0, "Seed of the split.", "randomSeed", "splitSeed")
    splits: Annotated[
        dict[str, Literal["train", "val", "test"]], Rule('an object like {"7.jpg": "val"}', _assigned)
    ] = setting({}, "Split of each image, by name or ID: train, val or test.", "customSplits")
    method: Any = setting(None, "`none` or `use_dataset` keeps the dataset's own split.")
    source: Any = setting(None, "This setting has no effect.")

    @model_validator(mode="after")
    def _sums_up_to_one(self) -> Self:
        train, val, test = self.shares()
        if train <= 0 or val < 1e-9 or abs(train + val + test - 1.0) > 0.011:
            raise ValueError("shares do not sum up to 1")
        return self

    def shares(self) -> tuple[float, float, float]:
        """Return the shares of train, val and test; missing shares are computed from the others."""
        given = dict(zip(_SHARES, self.ratio or (), strict=False))
        given |= {name: getattr(self, name) for name in _SHARES if name in self.model_fields_set}
        train, test = given.get("train_ratio"), given.get("test_ratio", 0.0)
        val = given.get("val_ratio", 0.2 if train is None else 1.0 - train - test)
        return 1.0 - val - test if train is None else train, val, test

    def request(self, default_seed: int) -> SplitRequest | None:
        """Return the split for the plan; None for the dataset's own split."""
        if self.method in _AS_IT_IS:
            return None
        train, _, test = self.shares()
        seed = self.seed if "seed" in self.model_fields_set else default_seed
        return SplitRequest(train_ratio=train, test_ratio=test, seed=seed, assigned=self.splits)
