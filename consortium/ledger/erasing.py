"""Erasing private data for good, in the background.

What a contract purges, or a collection's `blockToLive` ends, is deleted with its block. Its bytes
stay in the database's file until they are overwritten, which happens here: right after the block,
in a thread of its own, or when those who still read from before it have ended. A note in the
ledger, written with the deletion, has it done at the next start if the peer stops in between.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from consortium.storage.environment import Environment, StorageError

_LOGGER = logging.getLogger(__name__)

SHARE = 0.05
"""Of the time, at most, that is spent erasing while there is always something to erase."""
RETRY_S = 0.1
"""How long to wait for readers before trying again."""
SLOW_S = 10.0


class Eraser:
    """Erases when asked; requests that come while it works are one request."""

    def __init__(
        self,
        environment: Environment,
        between_commits: Callable[[], AbstractContextManager[object]],
        erased: Callable[[], None],
    ) -> None:
        """`erased` takes away the ledger's note; it is called between two commits."""
        self._environment = environment
        self._between_commits = between_commits
        self._erased = erased
        self._changed = threading.Condition()
        self._requests = 0
        self._done = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def request(self) -> None:
        """Something was deleted that must not stay in the file."""
        with self._changed:
            self._requests += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="erase", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @property
    def idle(self) -> bool:
        """Whether everything that was deleted is erased."""
        with self._changed:
            return self._done == self._requests

    def close(self) -> None:
        """Stop; what is left to do is done at the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, pause)
                self._changed.wait_for(lambda: self._closing or self._done < self._requests)
                if self._closing:
                    return
                wanted = self._requests
            started = time.monotonic()
            try:
                finished = self._environment.erase()
                if finished:
                    self._note(wanted)
            except StorageError as error:
                # The next commit meets the same disk, and stops the node.
                _LOGGER.error("purged private data are not erased from the disk yet: %s", error)
                finished, pause = False, SLOW_S
            else:
                pause = (time.monotonic() - started) / SHARE if finished else RETRY_S

    def _note(self, wanted: int) -> None:
        with self._between_commits(), self._changed:
            self._done = max(self._done, wanted)
            last = self._done == self._requests
            if last:
                self._erased()
