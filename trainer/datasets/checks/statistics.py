"""Everything that can be wrong with a dataset before a GPU is touched, found in one go."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from trainer.core.stop import StopSignal
from trainer.datasets.findings import Report
from trainer.datasets.images.facts_cache import identity
from trainer.datasets.images.header import Facts, facts, wrong_suffix
from trainer.datasets.samples import Sample

CHECK_EVERY = 256  # files between looks at the stop signal
THREADS = min(4, os.cpu_count() or 1)
RARE = 10  # instances; fewer teach a model little
UNBALANCED = 50  # times as many of one class as of another


def inspect(samples: Sequence[Sample], known: dict[str, Facts], report: Report, stop: StopSignal) -> list[Facts]:
    """Look at every image; what cannot be trained on is an error.

    `known` are the facts by file identity from an earlier time; afterwards it holds those of these samples.
    """
    result = _looked_at(samples, known, stop)
    for sample, fact in zip(samples, result, strict=True):
        if fact.problem:
            report.error(
                "image-unreadable",
                "{n} images cannot be trained on; replace or remove them",
                f"{sample.name}: {fact.problem}",
            )
        elif wrong_suffix(sample.name, fact.kind):
            report.warning(
                "image-suffix",
                "{n} images are of another kind than their name says",
                f"{sample.name}: {fact.kind}",
            )
    return result


def _looked_at(samples: Sequence[Sample], known: dict[str, Facts], stop: StopSignal) -> list[Facts]:
    keys = [identity(sample.image, is_owned=sample.owned) for sample in samples]
    found = [known.get(key or "") for key in keys]
    unknown = [index for index, fact in enumerate(found) if fact is None]

    def look(begin: int) -> list[Facts]:
        stop.raise_if_set()
        return [facts(samples[index].image) for index in unknown[begin : begin + CHECK_EVERY]]

    # reading and digesting large images leaves Python's lock free for another thread
    with ThreadPoolExecutor(THREADS) as pool:
        looked = [fact for part in pool.map(look, range(0, len(unknown), CHECK_EVERY)) for fact in part]
    news = iter(looked)
    result = [fact or next(news) for fact in found]
    known.clear()
    known.update((key, fact) for key, fact in zip(keys, result, strict=True) if key)
    return result


def duplicates(samples: Sequence[Sample], found: Sequence[Facts], report: Report) -> None:
    """The same picture twice in a split wastes time; in two splits it makes the metrics too good."""
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index, fact in enumerate(found):
        if fact.digest:
            by_digest[fact.digest].append(index)
    for indices in by_digest.values():
        if len(indices) < 2:
            continue
        first = samples[indices[0]]
        for index in indices[1:]:
            other = samples[index]
            if other.split == first.split:
                report.warning(
                    "image-duplicate",
                    "{n} images are exact copies of another one in their split",
                    f"{other.name} = {first.name}",
                )
            else:
                report.warning(
                    "split-leak",
                    "{n} images are also in another split, so the metrics will look better than the model is",
                    f"{other.split}/{other.name} = {first.split}/{first.name}",
                )


def check_splits(images: Mapping[str, int], labeled: Mapping[str, int], report: Report) -> None:
    """Both train and val need images, and of those at least one with a label."""
    for split in ("train", "val"):
        if not images.get(split):
            if not report.has("val-missing", "train-empty"):
                report.error(f"{split}-empty", f"The dataset has no images for {split}.")
        elif not labeled.get(split) and any(labeled.values()):
            report.error(
                f"{split}-unlabeled",
                f"None of the {images[split]} images of {split} has a label; label some.",
            )
    if any(images.values()) and not any(labeled.values()):
        report.error(
            "no-labels",
            "No labeled annotations found in the dataset. Add labels (and ensure class names are assigned) then retry.",
        )


def balance(names: Sequence[str], per_class: Mapping[str, Sequence[int]], report: Report) -> None:
    """Classes that cannot be learnt or measured. `per_class` holds, per split, how often each class occurs."""
    total = [sum(counts) for counts in zip(*per_class.values(), strict=True)] if per_class else []
    for index, count in enumerate(total):
        if not count:
            report.warning("class-empty", "{n} classes have no label at all", names[index])
        elif count < RARE:
            report.warning("class-rare", f"{{n}} classes have fewer than {RARE} labels", f"{names[index]}: {count}")
        if count and not per_class.get("train", total)[index]:
            report.warning("class-not-in-train", "{n} classes do not occur in train and cannot be learnt", names[index])
        if count and not per_class.get("val", total)[index]:
            report.note("class-not-in-val", "{n} classes do not occur in val", names[index])
    present = [count for count in total if count]
    if present and max(present) > UNBALANCED * min(present):
        report.warning(
            "class-balance",
            f"The most frequent class has {max(present)} labels, the rarest {min(present)}",
        )


def sizes(found: Sequence[Facts]) -> dict[str, object]:
    """The distribution of image sizes: extremes, median, and the most common ones."""
    known = [(fact.width, fact.height) for fact in found if not fact.problem]
    if not known:
        return {}
    ordered = sorted(known, key=lambda size: size[0] * size[1])
    common = Counter(known).most_common(5)
    return {
        "smallest": list(ordered[0]),
        "median": list(ordered[len(ordered) // 2]),
        "largest": list(ordered[-1]),
        "common": [{"size": list(size), "images": count} for size, count in common],
        "kinds": dict(Counter(fact.kind for fact in found if not fact.problem)),
        "bytes": sum(fact.size for fact in found),
    }
