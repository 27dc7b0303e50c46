"""Listings of Supabase Storage, complete or an error: page after page, by either of its two routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from trainer.core.errors import ObjectMissing, Unavailable
from trainer.remote.storage_api import NoSuchRoute

PAGE = 1000  # objects; the server cuts longer pages without saying so
Ask: TypeAlias = Callable[[str, Mapping[str, Any]], Any]  # route and body → the page
Entry: TypeAlias = tuple[str, Mapping[str, Any]]  # key of an object, and what the server says of it


def entries(ask: Ask, folder: str) -> Iterator[Entry]:
    """Every object below `folder`, which is empty or ends with a slash."""
    try:
        first = _page(ask, folder, None)
    except (NoSuchRoute, ObjectMissing):
        # an older server takes the route for an object called `list-v2/…`, and finds no bucket of that name
        yield from _folder_by_folder(ask, folder)
    else:
        yield from _recursive(ask, folder, first)


def _recursive(ask: Ask, folder: str, page: Mapping[str, Any]) -> Iterator[Entry]:
    seen = set()
    while True:
        for entry in page["objects"]:
            yield str(entry.get("key") or entry["name"]), entry
        if not page["hasNext"]:
            return
        cursor = page.get("nextCursor")
        if not cursor or cursor in seen:
            raise Unavailable("storage does not say how the listing goes on")
        seen.add(cursor)
        page = _page(ask, folder, cursor)


def _page(ask: Ask, folder: str, cursor: str | None) -> Mapping[str, Any]:
    body = {"prefix": folder, "limit": PAGE, "with_delimiter": False} | ({"cursor": cursor} if cursor else {})
    page = ask("object/list-v2", body)
    if not isinstance(page, dict) or not isinstance(page.get("objects"), list) or "hasNext" not in page:
        raise Unavailable("storage answered a listing with something else")
    return page


def _folder_by_folder(ask: Ask, top: str) -> Iterator[Entry]:
    folders = [top]
    while folders:
        folder, offset, full = folders.pop(), 0, True
        while full:
            order = {"column": "name", "order": "asc"}
            page = ask("object/list", {"prefix": folder, "limit": PAGE, "offset": offset, "sortBy": order})
            if not isinstance(page, list):
                raise Unavailable("storage answered a listing with something else")
            offset, full = offset + len(page), len(page) >= PAGE
            for entry in page:
                key = f"{folder}{entry['name']}"
                if entry.get("id") is None:
                    folders.append(f"{key}/")
                else:
                    yield key, entry
