"""One hash over many leaves, of which each can be shown without the others.

A Merkle tree as RFC 6962 (section 2.1) has it: leaves and nodes are hashed with different bytes in
front, so that neither can pass for the other, and a tree that isn't full is split where a full one
ends. Hashes travel as lower-case hex. A leaf hides its content only if that is salted.
"""

from collections.abc import Sequence
from typing import Annotated

from consortium.chaincode.api import AtMost, Integer, InvalidArgument, Text, sha256, sha256_hex

MAX_LEAVES = 2_048
MAX_DEPTH = 11

Hash = Annotated[str, Text(r"[0-9a-f]{64}", "a SHA-256 in lower-case hex")]
Path = Annotated[tuple[Hash, ...], AtMost(MAX_DEPTH)]
"""Hashes of what stands beside a leaf, from the leaf up to the root."""
Count = Annotated[int, Integer(1, MAX_LEAVES, "leaves")]
Index = Annotated[int, Integer(0, MAX_LEAVES - 1)]


def leaf_hash(content: bytes) -> str:
    """The hash of a leaf."""
    return sha256_hex(b"\0" + content)


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right)


def _split(count: int) -> int:
    """The largest power of two below a count."""
    size = 1
    while size * 2 < count:
        size *= 2
    return size


def root(leaves: Sequence[str]) -> str:
    """The hash over some leaves' hashes; of none, the hash of nothing."""
    if not leaves:
        return sha256_hex(b"")
    if len(leaves) == 1:
        return leaves[0]
    size = _split(len(leaves))
    left, right = root(leaves[:size]), root(leaves[size:])
    return _node(bytes.fromhex(left), bytes.fromhex(right)).hex()


def path(leaves: Sequence[str], index: int) -> tuple[str, ...]:
    """What to show beside a leaf, so that it can be checked against the root."""
    if len(leaves) == 1:
        return ()
    size = _split(len(leaves))
    if index < size:
        return (*path(leaves[:size], index), root(leaves[size:]))
    return (*path(leaves[size:], index - size), root(leaves[:size]))


def root_by_path(leaf: str, index: int, count: int, beside: Sequence[str]) -> str:
    """The root that a leaf and its path come to.

    Raises:
        InvalidArgument: a tree of `count` leaves has no such leaf, or its paths another length.
    """
    turned = turns(index, count)
    if len(turned) != len(beside):
        raise InvalidArgument(
            f"path has {len(beside)} hashes, but at this place of the tree it has {len(turned)}"
        )
    node = bytes.fromhex(leaf)
    for left, other in zip(turned, beside, strict=True):
        node = parent(node, bytes.fromhex(other), left=left)
    return node.hex()


def turns(index: int, count: int) -> tuple[bool, ...]:
    """Whether a leaf, and what lies above it, is the left one of two: from the leaf up.

    Raises:
        InvalidArgument: a tree of `count` leaves has no such leaf.
    """
    if index >= count:
        raise InvalidArgument(f"index is {index}, but the tree has {count} leaves")
    found = []
    while count > 1:
        size = _split(count)
        found.append(index < size)
        index, count = (index, size) if index < size else (index - size, count - size)
    return tuple(reversed(found))


def parent(node: bytes, other: bytes, *, left: bool) -> bytes:
    """The hash over a node and the one beside it, of which it is the left one or not."""
    return _node(node, other) if left else _node(other, node)
