"""Places that callers hold for long, such as streams: nobody holds so many that others have none.

Whoever has a certificate of the channel, a home's too, may wait for a commit or follow events for
as long as he likes. A limit for all alone would let one of them take every place there is.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator


class NoMorePlaces(Exception):
    """The caller holds as many as one caller may; the message says so."""


class Places:
    """How many each caller holds; `what` names them in the refusal."""

    def __init__(self, each: int, what: str) -> None:
        self._each, self._what = each, what
        self._held: Counter[bytes] = Counter()

    @contextlib.contextmanager
    def held_by(self, caller: bytes) -> Iterator[None]:
        """One more for a caller, by its serialized identity, as long as the context lasts.

        Raises NoMorePlaces.
        """
        if self._held[caller] >= self._each:
            raise NoMorePlaces(
                f"{self._each} {self._what} of one client are served at once, which is the limit; "
                "end some of them first"
            )
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]
