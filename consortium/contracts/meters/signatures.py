"""Whether a meter signed a reading: by itself, or together with others of its own.

Checking a signature takes longer than all else that is done with a reading. So a meter, or the
concentrator that holds its key, may sign many at once: the readings are leaves of a Merkle tree
(see `common.trees`), and the meter signs the tree's root, the number of leaves and its own name.
Each reading carries that signature with its place in the tree and the hashes beside its way to the
root:

    signature = base64 of the DER signature                                       signed by itself
              | base64 of the DER signature ":" index ":" count ":" base64 of the hashes, joined

So every reading proves itself, alone, as if it had been signed alone; salts keep those who see one
from finding out the others. The leaves are the bytes that would have been signed singly.
"""

from typing import Annotated

from consortium.chaincode.api import (
    InvalidArgument,
    Text,
    base64_bytes,
    canonical_json,
    sha256,
    verify_p256,
)

from ..common import trees

MAX_TOGETHER = 999
"""Readings under one signature: as many as fit in one submission."""
_HASH_BYTES = 32

Signature = Annotated[
    str,
    Text(
        r"(?:[A-Za-z0-9+/]{0,124}={0,2}"
        r"(?::(?:0|[1-9][0-9]{0,2}):[1-9][0-9]{0,2}:[A-Za-z0-9+/]{0,428}={0,2})?)",
        "base64 of a DER signature, empty for a value that an operator puts in its place, or with "
        "the reading's way to the root that was signed: signature:index:count:base64 of hashes",
    ),
]


def root_bytes(channel_id: str, meter_id: str, count: int, root: bytes) -> bytes:
    """What a meter signs of readings together: canonical JSON."""
    return canonical_json(
        {"channel": channel_id, "count": count, "meter_id": meter_id, "root": root.hex()}
    )


class Signatures:
    """Checks signatures; what is signed together is checked once."""

    def __init__(self, channel_id: str) -> None:
        self._channel_id = channel_id
        self._signed: dict[tuple[str, str, str, int, bytes], bool] = {}
        self._places: dict[str, tuple[int, tuple[bool, ...]]] = {}
        self._roots: dict[tuple[bytes, tuple[bool, ...], bytes], bytes] = {}

    def holds(self, public_key: str, meter_id: str, signature: str, signed: bytes) -> bool:
        """Whether the meter with that key signed these bytes of one reading."""
        own, together, place = signature.partition(":")
        if not together:
            return verify_p256(public_key, signature, signed)
        try:
            count, root = self._root(place, signed)
        except InvalidArgument:
            return False
        asked = (public_key, meter_id, own, count, root)
        known = self._signed.get(asked)
        if known is None:
            message = root_bytes(self._channel_id, meter_id, count, root)
            known = self._signed[asked] = verify_p256(public_key, own, message)
        return known

    def _root(self, place: str, signed: bytes) -> tuple[int, bytes]:
        """The tree's count and root, by a reading's place in it; raises InvalidArgument."""
        at, _, encoded = place.rpartition(":")
        known = self._places.get(at)
        if known is None:
            index, _, leaves = at.partition(":")
            known = self._places[at] = (int(leaves), trees.turns(int(index), int(leaves)))
        count, turned = known
        hashes = base64_bytes(encoded)
        if len(hashes) != _HASH_BYTES * len(turned):
            raise InvalidArgument("signature has another number of hashes than its place asks for")
        return count, self._above(sha256(b"\0" + signed), turned, hashes)

    def _above(self, node: bytes, turned: tuple[bool, ...], hashes: bytes) -> bytes:
        """The root above a node; what readings of one tree have in common is hashed once."""
        if not turned:
            return node
        way = (node, turned, hashes)
        root = self._roots.get(way)
        if root is None:
            parent = trees.parent(node, hashes[:_HASH_BYTES], left=turned[0])
            root = self._roots[way] = self._above(parent, turned[1:], hashes[_HASH_BYTES:])
        return root
