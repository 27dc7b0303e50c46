"""Find image files by the names in annotation files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from trainer.core.errors import DatasetError
from trainer.core.text import printable
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.samples import SPLIT_WORDS


class ImageIndex:
    """All images of a tree, in any folder."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._path: dict[str, str] = {}
        for folder, listing in tree.below(str(tree.root)):
            for name, path in listing.images.items():
                relative = tree.relative(f"{folder}/{name}")
                self._by_name[name].append(relative)
                self._path[relative] = path

    def find(self, file_name: str, near: str, split: str | None) -> tuple[str, str] | None:
        """Return the path and the relative name of an image, or None.

        If several images have this file name, the image whose folders match best is chosen. If several images match
        equally well, an image inside `near` has priority, then an image inside a folder of the split. Raises
        `DatasetError` if several images still match.
        """
        parts = [part for part in file_name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        candidates = self._by_name.get(parts[-1] if parts else "", [])
        if not candidates:
            return None
        agreement = max(_agreement(candidate, parts) for candidate in candidates)
        best = [candidate for candidate in candidates if _agreement(candidate, parts) == agreement]
        words = SPLIT_WORDS[split] if split else ()
        best = (
            [candidate for candidate in best if candidate.startswith(near)]
            or [candidate for candidate in best if any(p.startswith(words) for p in candidate.lower().split("/")[:-1])]
            or best
        )
        exact = "/".join(parts)
        if len(best) > 1 and exact not in best:
            raise DatasetError(
                f"{printable(file_name)} matches {printable(best[0])} and {printable(best[1])}; "
                "add the folder to the file name"
            )
        relative = exact if exact in best else best[0]
        return self._path[relative], relative


def _agreement(path: str, parts: Sequence[str]) -> int:
    """Return the number of equal names at the end of `path` and `parts`."""
    count = 0
    for ours, theirs in zip(reversed(path.split("/")), reversed(parts), strict=False):
        if ours != theirs:
            break
        count += 1
    return count
