"""LMDB's file, page by page: to erase what was deleted, and to check what LMDB takes on trust.

LMDB never overwrites a page in use: a change writes a copy, and the old page is free once nobody
reads it. So deleted bytes stay in the file: in free pages until they are used again, in the gap
between the pointers and the nodes of a page, and behind a large value on its last page. `erase`
overwrites all three with zeros, in place. It touches no byte that any transaction can read:

* a free page, only if it was freed by a transaction that every reader has seen, and that neither
  of the two meta pages precedes, so that a crash can't bring it back;
* a gap or tail, which readers skip.

The owner holds LMDB's write lock meanwhile, so that no page changes its role.

LMDB has no checksums, and follows any page number that it finds. `check` walks everything first and
raises for what it could stumble over, so that a damaged file is named and not run into.

(Layout: LMDB 0.9, mdb.c, data version 1, little endian, 64 bits.)
"""

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_HEADER = struct.Struct("<QHHHH")  # page number, pad, flags, lower, upper (or pages of a large one)
_HEADER_BYTES = 16
_META_FIXED = struct.Struct("<IIQQ")  # magic, version, address, map size
_DB = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf, large pages, entries, root
_META_TAIL = struct.Struct("<QQ")  # last page, transaction
_META_BYTES = _HEADER_BYTES + _META_FIXED.size + 2 * _DB.size + _META_TAIL.size
_NODE = struct.Struct("<HHHH")  # low and high half of size or child, flags, key size
_BRANCH, _LEAF, _LARGE, _META = 1, 2, 4, 8
_NODE_LARGE, _NODE_TABLE = 1, 2
_NONE = 2**64 - 1
_MAX_DEPTH = 32
_LONGEST_KEY = 511
_ZEROS = bytes(64 * 1024)


class PageError(Exception):
    """The file is not what LMDB writes; the message says where."""


@dataclass(frozen=True, slots=True)
class _Tree:
    depth: int
    branch_pages: int
    leaf_pages: int
    large_pages: int
    entries: int
    root: int


@dataclass(frozen=True, slots=True)
class _Meta:
    page_bytes: int
    free: _Tree
    main: _Tree
    last_page: int
    transaction: int


@dataclass(slots=True)
class _Walk:
    """What a walk through a tree has counted."""

    branch_pages: int = 0
    leaf_pages: int = 0
    large_pages: int = 0
    entries: int = 0
    seen: set[int] = field(default_factory=set)


class Grown(PageError):
    """Somebody has written since the file was opened."""


class PageFile:
    """One `data.mdb`, read through a map of its own. Close it, or use it in a `with`."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open the file; raises PageError if it is none of LMDB's, OSError."""
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            size = os.fstat(self._descriptor).st_size
            if size < 2 * _META_BYTES:
                raise PageError(f"{path} is too short for an LMDB file")
            self._map = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._size = size

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._map.close()
        os.close(self._descriptor)

    # --- reading ---

    def _metas(self) -> list[_Meta]:
        page_bytes = _DB.unpack_from(self._map, _HEADER_BYTES + _META_FIXED.size)[0]
        if page_bytes < 512 or page_bytes & (page_bytes - 1) or page_bytes > 65536:
            raise PageError(f"{self._path} has pages of {page_bytes} bytes, which LMDB never has")
        metas = []
        for number in range(2):
            start = number * page_bytes
            if start + _META_BYTES > self._size:
                raise PageError(f"{self._path} is too short for its pages")
            found, _, flags, _, _ = _HEADER.unpack_from(self._map, start)
            magic, version, _, _ = _META_FIXED.unpack_from(self._map, start + _HEADER_BYTES)
            if magic != _MAGIC or flags != _META or found != number:
                raise PageError(f"meta page {number} of {self._path} is damaged")
            if version != _DATA_VERSION:
                raise PageError(
                    f"{self._path} has LMDB's data version {version}; {_DATA_VERSION} is read here"
                )
            at = start + _HEADER_BYTES + _META_FIXED.size
            size = _DB.unpack_from(self._map, at)[0]
            if size != page_bytes:
                raise PageError(f"the meta pages of {self._path} differ in the size of a page")
            free, main = self._tree_at(at), self._tree_at(at + _DB.size)
            last_page, transaction = _META_TAIL.unpack_from(self._map, at + 2 * _DB.size)
            metas.append(_Meta(page_bytes, free, main, last_page, transaction))
        return metas

    def _tree_at(self, offset: int) -> _Tree:
        _, _, depth, branch, leaf, large, entries, root = _DB.unpack_from(self._map, offset)
        return _Tree(depth, branch, leaf, large, entries, root)

    def _page(self, meta: _Meta, number: int) -> tuple[int, int, int, int]:
        """Start, flags, lower and upper of a page; raises PageError for one that can't be."""
        start = number * meta.page_bytes
        if not 2 <= number <= meta.last_page or start + meta.page_bytes > self._size:
            raise PageError(f"{self._path} refers to page {number}, which it does not have")
        found, _, flags, lower, upper = _HEADER.unpack_from(self._map, start)
        if found != number:
            raise PageError(f"page {number} of {self._path} says that it is page {found}")
        return start, flags, lower, upper

    def _node_page(self, meta: _Meta, number: int) -> tuple[int, int, list[int]]:
        """Start and flags of a branch or leaf, and where its nodes lie."""
        start, flags, lower, upper = self._page(meta, number)
        if flags not in (_BRANCH, _LEAF) or not (
            _HEADER_BYTES <= lower <= upper <= meta.page_bytes and lower % 2 == 0
        ):
            raise PageError(f"page {number} of {self._path} is damaged")
        count = (lower - _HEADER_BYTES) // 2
        places = list(struct.unpack_from(f"<{count}H", self._map, start + _HEADER_BYTES))
        ends = []
        for index, place in enumerate(places):
            if not upper <= place <= meta.page_bytes - _NODE.size or place % 2:
                raise PageError(f"a node of page {number} of {self._path} lies outside of it")
            ends.append((place, self._node_end(start, flags, place, index)))
        ends.sort()
        for (_, end), (following, _) in zip(ends, [*ends[1:], (meta.page_bytes, 0)], strict=True):
            if end > following:
                raise PageError(f"nodes of page {number} of {self._path} overlap")
        if sum(end - place + (end - place) % 2 for place, end in ends) != meta.page_bytes - upper:
            raise PageError(f"page {number} of {self._path} has lost or gained space")
        return start, flags, places

    def _node_end(self, start: int, flags: int, place: int, index: int) -> int:
        low, high, node_flags, key_bytes = _NODE.unpack_from(self._map, start + place)
        if key_bytes > _LONGEST_KEY or (flags == _LEAF and node_flags not in (0, 1, 2)):
            raise PageError(f"node {index} of a page of {self._path} is damaged")
        end = place + _NODE.size + key_bytes
        if flags == _LEAF:
            end += 8 if node_flags & _NODE_LARGE else low | high << 16
        return int(end)

    def _leaf_value(self, meta: _Meta, start: int, place: int) -> tuple[bytes, int, bytes]:
        """Key, flags and value of a leaf's node."""
        low, high, flags, key_bytes = _NODE.unpack_from(self._map, start + place)
        at = start + place + _NODE.size
        key, size = self._map[at : at + key_bytes], low | high << 16
        at += key_bytes
        if flags & _NODE_LARGE:
            first, _ = self._large(meta, at, size)
            at = first * meta.page_bytes + _HEADER_BYTES
        return key, flags, self._map[at : at + size]

    def _large(self, meta: _Meta, at: int, size: int) -> tuple[int, int]:
        """First page and number of pages of a large value, whose reference lies at `at`."""
        (number,) = struct.unpack_from("<Q", self._map, at)
        start, flags, low, high = self._page(meta, number)
        pages = low | high << 16
        needed = -(-(_HEADER_BYTES + size) // meta.page_bytes)
        if flags != _LARGE or pages < needed or number + pages - 1 > meta.last_page:
            raise PageError(f"the large value at page {number} of {self._path} is damaged")
        if start + pages * meta.page_bytes > self._size:
            raise PageError(f"the large value at page {number} of {self._path} is cut off")
        return number, pages

    def _leaves(
        self, meta: _Meta, tree: _Tree, walk: _Walk, *, integer_keys: bool = False
    ) -> Iterator[tuple[int, list[int]]]:
        """Start and nodes of every leaf of a tree; raises PageError where it is damaged."""
        if tree.root == _NONE:
            if tree.entries or tree.depth:
                raise PageError(f"a tree of {self._path} has lost its root")
            return
        if not 0 < tree.depth <= _MAX_DEPTH:
            raise PageError(f"a tree of {self._path} is {tree.depth} pages deep")
        previous: bytes | None = None
        pending: list[tuple[int, int, bytes, bytes | None]] = [(tree.root, 1, b"", None)]
        while pending:
            number, depth, above, below = pending.pop()
            if number in walk.seen:
                raise PageError(f"page {number} of {self._path} is used twice")
            walk.seen.add(number)
            start, flags, places = self._node_page(meta, number)
            if (flags == _LEAF) != (depth == tree.depth) or not places:
                raise PageError(f"page {number} of {self._path} stands at the wrong depth")
            keys = [self._key(start, place) for place in places]
            if flags == _LEAF:
                walk.leaf_pages += 1
                walk.entries += len(places)
                for key in keys:
                    ordered = key[::-1] if integer_keys else key
                    if previous is not None and ordered <= previous:
                        raise PageError(f"page {number} of {self._path} is not in order")
                    if ordered < above or (below is not None and ordered >= below):
                        raise PageError(f"page {number} of {self._path} has a key of another page")
                    previous = ordered
                self._count_large(meta, start, places, walk)
                yield start, places
                continue
            walk.branch_pages += 1
            if integer_keys:
                keys = [key[::-1] for key in keys]
            bounds = [above, *keys[1:], below]
            children = []
            for index, place in enumerate(places):
                low, high, upper, _ = _NODE.unpack_from(self._map, start + place)
                child = low | high << 16 | upper << 32
                children.append((child, depth + 1, bounds[index] or b"", bounds[index + 1]))
            pending += reversed(children)
        if (walk.branch_pages, walk.leaf_pages, walk.large_pages, walk.entries) != (
            tree.branch_pages,
            tree.leaf_pages,
            tree.large_pages,
            tree.entries,
        ):
            raise PageError(f"a tree of {self._path} has other pages or entries than it counts")

    def _key(self, start: int, place: int) -> bytes:
        length = _NODE.unpack_from(self._map, start + place)[3]
        at = start + place + _NODE.size
        return self._map[at : at + length]

    def _count_large(self, meta: _Meta, start: int, places: list[int], walk: _Walk) -> None:
        for place in places:
            low, high, flags, key_bytes = _NODE.unpack_from(self._map, start + place)
            if flags & _NODE_LARGE:
                at = start + place + _NODE.size + key_bytes
                number, pages = self._large(meta, at, low | high << 16)
                for page in range(number, number + pages):
                    if page in walk.seen:
                        raise PageError(f"page {page} of {self._path} is used twice")
                    walk.seen.add(page)
                walk.large_pages += pages

    def _free_pages(self, meta: _Meta, walk: _Walk) -> Iterator[tuple[int, list[int]]]:
        """The transactions that freed pages, with the pages."""
        for start, places in self._leaves(meta, meta.free, walk, integer_keys=True):
            for place in places:
                key, _, value = self._leaf_value(meta, start, place)
                if len(key) != 8 or len(value) < 8 or len(value) % 8:
                    raise PageError(f"the list of free pages of {self._path} is damaged")
                count, *pages = struct.unpack(f"<{len(value) // 8}Q", value)
                if count > len(pages):
                    raise PageError(f"the list of free pages of {self._path} is damaged")
                yield int.from_bytes(key, "little"), pages[:count]

    def _trees(self, meta: _Meta, walk: _Walk) -> Iterator[tuple[bytes, _Tree]]:
        """The tables by name, out of the main tree."""
        for start, places in self._leaves(meta, meta.main, walk):
            for place in places:
                key, flags, value = self._leaf_value(meta, start, place)
                if flags != _NODE_TABLE or len(value) != _DB.size:
                    raise PageError(f"the list of tables of {self._path} is damaged")
                _, table_flags, depth, branch, leaf, large, entries, root = _DB.unpack(value)
                if table_flags:
                    raise PageError(f"table {key!r} of {self._path} is of an unknown kind")
                yield key, _Tree(depth, branch, leaf, large, entries, root)

    # --- checking ---

    def check_metas(self) -> None:
        """Look at the two pages that LMDB opens the file by; raises PageError."""
        self._metas()

    def check(self) -> int:
        """Walk everything that LMDB could follow; how many pages are in use. Raises PageError.

        Nobody may write meanwhile, unless a read transaction of LMDB's began before: what it could
        read stays. Raises Grown where the file is larger by now than what was opened.
        """
        meta = max(self._metas(), key=lambda one: one.transaction)
        if (meta.last_page + 1) * meta.page_bytes > self._size:
            if os.fstat(self._descriptor).st_size > self._size:
                raise Grown(f"{self._path} has grown since it was opened; open it again")
            raise PageError(f"{self._path} is cut off before its last page")
        used: set[int] = set()

        def add(walk: _Walk) -> None:
            if used & walk.seen:
                raise PageError(f"page {min(used & walk.seen)} of {self._path} is used twice")
            used.update(walk.seen)

        walk = _Walk()
        free: list[int] = []
        for _, pages in self._free_pages(meta, walk):
            free += pages
        add(walk)
        main = _Walk()
        trees = list(self._trees(meta, main))
        add(main)
        for _, tree in trees:
            walk = _Walk()
            for _ in self._leaves(meta, tree, walk):
                pass
            add(walk)
        if len(set(free)) != len(free) or used & set(free):
            raise PageError(f"{self._path} lists a page in use as free")
        if len(used) + len(free) != meta.last_page - 1:
            raise PageError(f"{self._path} has pages that are neither in use nor free")
        return len(used)

    # --- erasing ---

    def erase(self, oldest_reader: int, until: int) -> bool:
        """Overwrite what was deleted; True if nothing is left that transaction `until` deleted.

        `oldest_reader` is the oldest transaction that anyone reads, or the newest if nobody does.
        The caller holds the write lock. Raises PageError, OSError; both leave the content intact.
        """
        metas = self._metas()
        meta = max(metas, key=lambda one: one.transaction)
        settled = min(oldest_reader, *(one.transaction for one in metas))
        free: set[int] = set()
        finished = True
        for transaction, pages in self._free_pages(meta, _Walk()):
            if transaction <= settled:
                free.update(pages)
            elif transaction <= until:
                finished = False
        size, number = meta.page_bytes, 2
        large: dict[int, int] = {}
        values: list[tuple[int, int]] = []
        while number <= meta.last_page:
            if number in free:
                self._zero(number * size, (number + 1) * size)
                number += 1
                continue
            start, flags, lower, upper = self._page(meta, number)
            if flags == _LARGE:
                # Its further pages have no headers.
                large[number] = lower | upper << 16
                number += large[number]
                continue
            if flags not in (_BRANCH, _LEAF) or not _HEADER_BYTES <= lower <= upper <= size:
                raise PageError(f"page {number} of {self._path} is damaged")
            self._zero(start + lower, start + upper)
            if flags == _LEAF:
                values += self._large_values(start, lower, size)
            number += 1
        for first, length in values:
            if first in large:
                self._zero(first * size + _HEADER_BYTES + length, (first + large[first]) * size)
        # Behind the last page there may be some of a transaction that was given up.
        self._zero((meta.last_page + 1) * size, self._size)
        os.fdatasync(self._descriptor)
        return finished

    def _large_values(self, start: int, lower: int, size: int) -> Iterator[tuple[int, int]]:
        """First page and length of each large value that a leaf refers to."""
        with memoryview(self._map)[start : start + size].cast("H") as halves:
            for place in halves[_HEADER_BYTES // 2 : lower // 2]:
                at = place >> 1
                if halves[at + 2] & _NODE_LARGE:
                    reference = start + place + _NODE.size + halves[at + 3]
                    (first,) = struct.unpack_from("<Q", self._map, reference)
                    yield first, halves[at] | halves[at + 1] << 16

    def _zero(self, start: int, end: int) -> None:
        """Write zeros, where there are none yet."""
        end = min(end, self._size)
        while start < end:
            upto = min(end, start + len(_ZEROS))
            zeros = _ZEROS[: upto - start]
            if self._map[start:upto] != zeros:
                os.pwrite(self._descriptor, zeros, start)
            start = upto
