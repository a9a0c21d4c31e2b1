"""Pages of a list: as many items as asked for, and a bookmark where the next page begins."""

from typing import Annotated, Any

from consortium.chaincode.api import Context, InvalidArgument, Text, stored_record, under

Bookmark = Annotated[
    str, Text(r"[A-Za-z0-9/.-]{0,300}", "a bookmark from the page before, or empty")
]


def page(
    context: Context, prefix: str, first: str, limit: int, bookmark: str | None
) -> tuple[list[tuple[str, bytes]], str | None]:
    """Items under `prefix` from key `prefix + first` on, and the next page's bookmark or None."""
    start, end = under(prefix)
    start += first
    if bookmark:
        if prefix + bookmark < start:
            raise InvalidArgument("bookmark is from another list; begin without one")
        start = prefix + bookmark + "\0"
    items: list[tuple[str, bytes]] = []
    for key, value in context.range(start, end):
        if len(items) == limit:
            return items, items[-1][0].removeprefix(prefix)
        items.append((key, value))
    return items, None


def listed[R](
    context: Context,
    name: str,
    record: type[R],
    prefix: str,
    first: str,
    limit: int,
    bookmark: str | None,
) -> dict[str, Any]:
    """The answer of a query for a page of records as they are stored: `{name: […], bookmark}`."""
    items, following = page(context, prefix, first, limit, bookmark)
    return {name: [stored_record(record, value) for _, value in items], "bookmark": following}
