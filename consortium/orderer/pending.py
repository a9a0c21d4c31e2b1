"""Envelopes that clients of this orderer wait for, from their arrival to their block."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from consortium.wire import common_pb2

from .admission import Admitted
from .room import Room


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one channel on one orderer."""

    pending_envelopes: int = 20_000
    """Envelopes taken from clients here and not yet in a block; as many may wait at the leader."""
    pending_bytes: int = 128 * 1024 * 1024
    submit_timeout_s: float = 10.0
    """After this an envelope that is not in a block is answered SERVICE_UNAVAILABLE."""
    leaderless_grace_s: float = 3.0
    """How long a channel may be without leader before clients and readers are told."""
    checkpoint_bytes: int = 8 * 1024 * 1024
    """Blocks that are written again from the Raft log after a crash, at most."""
    checkpoint_blocks: int = 1_000
    hand_over_s: float = 1.0
    """How long an orderer that stops waits for another to lead and for what is pending."""


@dataclass(slots=True, eq=False)
class Submission:
    """An envelope that a client waits for. `status` (common.Status) is None until it is settled."""

    raw: bytes
    notify: Callable[[], None]
    status: int | None = None
    info: str = ""
    digest: bytes = b""
    admitted: Admitted | None = None
    deadline: float = 0.0

    def answer(self, status: int, info: str = "") -> None:
        """Settle it, once."""
        if self.status is None:
            self.status = status
            self.info = info
            self.notify()


class PendingEnvelopes:
    """A channel's pending envelopes by digest; equal ones are told apart by their arrival."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_digest: dict[bytes, list[Submission]] = {}
        self._room = Room("to be ordered here", limits.pending_envelopes, limits.pending_bytes)

    def __len__(self) -> int:
        return self._room.envelopes

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._by_digest

    def __iter__(self) -> Iterator[Submission]:
        """All of them, oldest first; may be changed meanwhile."""
        return iter([one for group in self._by_digest.values() for one in group])

    def no_room(self, utility: str, utilities: int) -> str | None:
        """A sentence for the client if nothing more of a utility, one of so many, can be taken."""
        return self._room.refusal(utility, utilities)

    def add(self, submission: Submission, admitted: Admitted) -> None:
        """Take a submission whose envelope was admitted."""
        submission.admitted = admitted
        submission.digest = hashlib.sha256(admitted.raw).digest()
        submission.deadline = time.monotonic() + self._limits.submit_timeout_s
        self._by_digest.setdefault(submission.digest, []).append(submission)
        self._room.take(admitted.utility, len(admitted.raw))

    def settle(self, digest: bytes, status: int, info: str = "") -> bool:
        """Answer the oldest submission of an envelope; False if nobody waits for it here."""
        submissions = self._by_digest.get(digest)
        if not submissions:
            return False
        submission = submissions.pop(0)
        if not submissions:
            del self._by_digest[digest]
        if submission.admitted is not None:
            self._room.give_back(submission.admitted.utility, len(submission.admitted.raw))
        submission.answer(status, info)
        return True

    def settle_all(self, status: int, info: str) -> None:
        """Answer all of them."""
        for submission in self:
            self.settle(submission.digest, status, info)

    def expire(self) -> int:
        """Answer those that have waited too long; how many these were."""
        now = time.monotonic()
        expired = []
        for digest, submissions in self._by_digest.items():
            if submissions[0].deadline > now:
                break  # the rest came later
            expired.append(digest)
        for digest in expired:
            self.settle(
                digest,
                common_pb2.SERVICE_UNAVAILABLE,
                f"the envelope was not ordered within {self._limits.submit_timeout_s:g} s; it may"
                " be yet: look for its transaction before sending it again",
            )
        return len(expired)
