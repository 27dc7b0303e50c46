"""Complete listings of Supabase Storage, page by page, with the new or the old route of its API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from trainer.core.errors import ObjectMissing, Unavailable
from trainer.remote.answers import flag, mapping, sequence, text
from trainer.remote.storage_api import NoSuchRoute

PAGE = 1000  # objects; the server silently truncates longer pages
Entry: TypeAlias = tuple[str, Mapping[str, Any]]  # key of an object, and its description by the server
Page: TypeAlias = tuple[list[Entry], str | None]  # entries, and the cursor of the next page or None
# sends a body to a route and returns the parsed answer; retries if the answer cannot be parsed
Ask: TypeAlias = Callable[[str, Mapping[str, Any], Callable[[Any], Any]], Any]


def entries(ask: Ask, folder: str) -> Iterator[Entry]:
    """Yield every object inside `folder`, which is empty or ends with a slash."""
    try:
        first = _page(ask, folder, None)
    except (NoSuchRoute, ObjectMissing):
        # an older server reads `list-v2` in the route as the name of a bucket that does not exist
        yield from _folder_by_folder(ask, folder)
    else:
        yield from _recursive(ask, folder, first)


def _recursive(ask: Ask, folder: str, page: Page) -> Iterator[Entry]:
    seen = set()
    while True:
        found, cursor = page
        yield from found
        if cursor is None:
            return
        if cursor in seen:
            raise Unavailable("storage returned the same cursor twice in one listing")
        seen.add(cursor)
        page = _page(ask, folder, cursor)


def _page(ask: Ask, folder: str, cursor: str | None) -> Page:
    body = {"prefix": folder, "limit": PAGE, "with_delimiter": False} | ({"cursor": cursor} if cursor else {})
    page: Page = ask("object/list-v2", body, _read_page)
    return page


def _read_page(answer: Any) -> Page:
    objects = sequence(mapping(answer, "listing").get("objects"), "objects")
    found = [(text(entry, "key" if mapping(entry, "object").get("key") else "name"), entry) for entry in objects]
    return found, text(answer, "nextCursor") if flag(answer, "hasNext") else None


def _folder_by_folder(ask: Ask, top: str) -> Iterator[Entry]:
    folders = [top]
    while folders:
        folder, offset, before = folders.pop(), 0, None
        while True:
            order = {"column": "name", "order": "asc"}
            page = ask(
                "object/list", {"prefix": folder, "limit": PAGE, "offset": offset, "sortBy": order}, _read_folder
            )
            if page and page == before:
                raise Unavailable("storage returned the same page of a listing twice")
            for name, entry in page:
                if entry.get("id") is None:
                    folders.append(f"{folder}{name}/")
                else:
                    yield f"{folder}{name}", entry
            if len(page) < PAGE:
                break
            offset, before = offset + len(page), page


def _read_folder(answer: Any) -> list[Entry]:
    return [(text(entry, "name"), entry) for entry in sequence(answer, "listing")]
