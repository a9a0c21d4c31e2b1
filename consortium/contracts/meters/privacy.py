"""Contract `privacy` of chaincode `metering`: what a utility keeps of a home, and erasing it.

Everything that tells how people live stands in the private collection of their utility. A home may
have all of it (`export`). When nobody needs it any more, the utility erases it from every peer that
held it, with all it ever was; what the channel keeps is hashes in blocks and the sums that were
posted. That is allowed, and due,

- when corrections are refused: `correctable_s` after it (14 months, unless the channel says other),
- or for people who have moved out, when it can't change any more without an adjustment:
  `final_after_s` after it.

Private ranges can't be read by who writes, so `purgeable` names the keys and `purge` takes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Integer,
    InvalidArgument,
    Json,
    MspId,
    Text,
    canonical_json,
    query,
    read_record,
    stored_json,
    transaction,
    under,
)

from ..common import access, commitments, settings
from ..common.clock import DAY_S, Day, day_start, utc_text
from ..common.commitments import called, collection
from ..common.dated import MAX_SPANS, Span
from ..common.pages import Bookmark
from ..common.residence import Residence, residence, residence_of
from ..common.settings import MeteringSettings
from .meters import meter_of, meters_of
from .pseudonyms import Link, Links, link_key, link_of

MAX_PURGED = 2_000
"""Keys erased by one call."""
MAX_DAYS = 31
MAX_PAGE_BYTES = 500_000
"""After which a page of an export ends."""
_CLASSES = ("accredited", "declared")

PrivateKey = Annotated[
    str,
    Text(
        r"(r|g)/[A-Z0-9-]{1,64}/[0-9]{12}/[1-9]"
        r"|v/[A-Z0-9-]{1,64}/[0-9-]{10}"
        r"|late/[0-9-]{10}/[A-Z0-9-]{1,64}/[0-9]{12}/[1-9]"
        r"|(st|str)/[0-9-]{10}/[a-z0-9-]{1,20}/[A-Z0-9-]{1,64}"
        r"|(bill|billsum|relief)/[A-Z0-9-]{1,64}/[0-9-]{10}/[0-9]{1,3}"
        r"|(protected|clear)/[A-Z0-9-]{1,64}"
        r"|alias/[A-Z0-9-]{1,64}"
        r"|gen/[A-Z0-9-]{1,64}/[0-9]{4}-[0-9]{2}/[A-Z0-9-]{1,64}"
        r"|dr/[A-Z0-9-]{1,64}/[0-9]{12}/[A-Z0-9-]{1,64}/(expected|measured)"
        r"|feeder/[A-Z0-9-]{1,64}/[0-9]{1,12}/lines",
        "the key of a private record of homes",
    ),
]


@dataclass(frozen=True, slots=True)
class _Keys:
    keys: Annotated[tuple[PrivateKey, ...], AtMost(MAX_PURGED)]


@dataclass(frozen=True, slots=True)
class _Residents:
    spans: Annotated[tuple[Span, ...], AtMost(MAX_SPANS)]


@dataclass(frozen=True, slots=True)
class _Nodes:
    """As `grid:Above` has them."""

    nodes: Annotated[tuple[Identifier, ...], AtMost(2 * MAX_SPANS * MAX_SPANS)]


@dataclass(frozen=True, slots=True)
class _Connection:
    """As `registry:Connection` has it."""

    connection_id: Identifier
    utility: MspId
    zone: Identifier
    max_export_w: Annotated[int, Integer(0)]
    max_import_w: Annotated[int, Integer(0)]


@dataclass(frozen=True, slots=True)
class _Place:
    """What a private key is about."""

    owner: str
    """A meter, or a connection; empty: several homes."""
    is_meter: bool
    start: int | None
    """When what it tells began; None: it holds until it is changed."""
    end: int


def _place(key: str) -> _Place:
    kind, *parts = key.split("/")
    if kind in ("r", "g"):
        return _Place(parts[0], True, int(parts[1]), int(parts[1]))
    if kind == "v":
        return _Place(parts[0], True, day_start(parts[1]), day_start(parts[1]) + DAY_S)
    if kind == "late":
        return _Place(parts[1], True, int(parts[2]), day_start(parts[0]) + DAY_S)
    if kind in ("st", "str"):
        # A local day ends half a day after the UTC day of its name at the latest.
        return _Place(parts[2], False, day_start(parts[0]), day_start(parts[0]) + 2 * DAY_S)
    if kind in ("bill", "billsum", "relief"):
        start = day_start(parts[1])
        return _Place(parts[0], False, start, start + 33 * DAY_S)
    if kind == "gen":
        start = day_start(f"{parts[1]}-01")
        return _Place(parts[0], False, start, start + 31 * DAY_S)
    if kind == "dr":
        # Its baseline rests on days of up to two months before, which could be erased already.
        return _Place(parts[0], False, int(parts[1]), int(parts[1]) + DAY_S)
    if kind == "feeder":
        return _Place("", False, int(parts[1]), int(parts[1]))
    return _Place(parts[0], False, None, 0)


class _Home:
    """A connection, who has lived there, and where its private records stand."""

    def __init__(self, context: Context, connection_id: str) -> None:
        self.context = context
        self.connection_id = connection_id
        self.utility = called(
            context, "energy", "registry:Connection", _Connection, connection_id=connection_id
        ).utility
        self.spans = called(
            context, "energy", "roles:Residence", _Residents, connection_id=connection_id
        ).spans

    @property
    def meters(self) -> list[str]:
        """Names of the meters that it has or had with this utility."""
        return [
            meter.meter_id
            for kind in _CLASSES
            for meter in meters_of(self.context, self.connection_id, kind)
            if meter.utility == self.utility
        ]

    @property
    def nodes(self) -> list[str]:
        """Names of what it hangs or hung behind: no sum of others has lines of it."""
        return list(
            called(
                self.context, "energy", "grid:Above", _Nodes, connection_id=self.connection_id
            ).nodes
        )

    def sections(self, first: str = "", last: str = "9") -> Iterator[tuple[str, bool]]:
        """Prefixes of its private records (True), and keys (False), in one order.

        Of records kept by day those of days from `first` to before `last`.
        """
        for meter in self.meters:
            yield f"r/{meter}/", True
            yield f"g/{meter}/", True
            yield f"v/{meter}/", True
        yield f"bill/{self.connection_id}/", True
        yield f"billsum/{self.connection_id}/", True
        yield f"relief/{self.connection_id}/", True
        yield f"dr/{self.connection_id}/", True
        yield f"gen/{self.connection_id}/", True
        for day in self._under("late/", first, last):
            for meter in self.meters:
                yield f"late/{day}/{meter}/", True
        for kind in ("str", "st"):
            for day in self._under(f"{kind}/", first, last):
                for run in self._under(f"{kind}/{day}/"):
                    yield f"{kind}/{day}/{run}/{self.connection_id}", False
        for node in self.nodes:
            for to in self._under(f"feeder/{node}/"):
                yield f"feeder/{node}/{to}/lines", False
        yield f"protected/{self.connection_id}", False
        yield f"clear/{self.connection_id}", False
        yield link_key(self.connection_id), False

    def _under(self, prefix: str, first: str = "", last: str = "") -> Iterator[str]:
        """The names that follow a prefix in private keys; one key is read for each."""
        start, end = prefix + first, prefix + last if last else under(prefix)[1]
        while start < end:
            found = self.context.range_private(collection(self.utility), start, end)
            key = next((key for key, _ in found), None)
            if key is None:
                return
            name = key.removeprefix(prefix).partition("/")[0]
            yield name
            start = f"{prefix}{name}0"

    def read(self, section: str, is_prefix: bool, after: str) -> Iterator[tuple[str, bytes]]:
        """Records of a section after a key."""
        where = collection(self.utility)
        if is_prefix:
            start, end = under(section)
            yield from self.context.range_private(where, max(start, after), end)
        else:
            stored = self.context.get_private(where, section)
            if stored is not None and section.startswith("feeder/"):
                stored = self._own_lines(stored)
            if stored is not None:
                yield section, stored

    def _own_lines(self, stored: bytes) -> bytes | None:
        """What a sum of several homes has of this one."""
        record = stored_json(stored)
        assert isinstance(record, dict)
        lines = record["lines"]
        assert isinstance(lines, list)
        own = [
            line
            for line in lines
            if isinstance(line, dict) and line["connection_id"] == self.connection_id
        ]
        return canonical_json({**record, "lines": own, "salt": None}) if own else None

    def span_at(self, at: int) -> Span | None:
        """Who lived there at an instant, where the registry knows."""
        for span in self.spans:
            if span.from_ <= at and (span.until is None or at < span.until):
                return span
        return None

    def refusal(self, key: str, now: int, channel: MeteringSettings) -> str | None:
        """Why a record may not be erased yet; None if it may."""
        place = _place(key)
        if key.startswith("alias/"):
            link = link_of(self.context, self.utility, self.connection_id)
            if link is None or link.until_day is None:
                return "it is somebody's pseudonym"
            until = day_start(link.until_day) + DAY_S + channel.correctable_s
            return None if now >= until else f"its days can be corrected until {utc_text(until)}"
        if place.start is None:
            last = self.spans[-1] if self.spans else None
            if last is None or last.until is None or now < last.until:
                return "somebody lives there"
            return None
        if now >= place.end + channel.correctable_s:
            return None
        if not place.owner:
            return f"others need it until {utc_text(place.end + channel.correctable_s)}"
        span = self.span_at(place.start)
        if span is None or span.until is None or now < span.until:
            kept_until = utc_text(place.end + channel.correctable_s)
            return f"it can be corrected until {kept_until}, and who lived there hasn't moved out"
        if now < place.end + channel.final_after_s:
            return f"it becomes final at {utc_text(place.end + channel.final_after_s)}"
        return None


class Privacy(Contract):
    """Having what is kept of a home, and erasing it."""

    name: ClassVar[str] = "privacy"

    @query
    def export(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        limit: Annotated[int, Integer(1, 2_000)] = 1_000,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """All private records of a home, page by page, on a peer of its utility.

        A home sees what is of its time there.
        """
        home = _Home(context, connection_id)
        creator = context.creator
        operator = access.is_operator(creator, home.utility)
        access.require(
            operator or residence_of(creator, home.utility, connection_id, home.spans).ever,
            creator,
            f"export what is kept of {connection_id}",
            f"its home and operators of {home.utility}",
        )
        own = residence_of(creator, home.utility, connection_id, home.spans)
        _, now = _clock(context)
        records: list[dict[str, Json]] = []
        found: list[tuple[str, str]] = []
        size = 0
        skipping = bookmark is not None
        begun, _, after = (bookmark or "").partition("/")
        for number, (section, is_prefix) in enumerate(home.sections()):
            if skipping and (not begun.isdigit() or number < int(begun)):
                continue
            first = f"{after}\0" if skipping and number == int(begun) else ""
            for key, value in home.read(section, is_prefix, first):
                if first and key < first:
                    continue
                start = _place(key).start
                if not operator and not _is_own(own, start, now):
                    continue
                if len(records) == limit or size > MAX_PAGE_BYTES:
                    last_number, last_key = found[-1]
                    return self._page(home, records, f"{last_number}/{last_key}")
                records.append({"key": key, "value": stored_json(value)})
                size += len(value)
                found.append((str(number), key))
        return self._page(home, records, None)

    @staticmethod
    def _page(home: _Home, records: Sequence[Any], bookmark: str | None) -> dict[str, Any]:
        return {
            "connection_id": home.connection_id,
            "collection": collection(home.utility),
            "records": list(records),
            "bookmark": bookmark,
        }

    @query
    def purgeable(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        from_day: Day,
        to_day: Day,
        limit: Annotated[int, Integer(1, MAX_PURGED)] = MAX_PURGED,
    ) -> dict[str, Any]:
        """Keys of records of [from_day, to_day) that may be erased now; ask again after erasing."""
        home = _Home(context, connection_id)
        self._require_operator(context, home)
        start, end = day_start(from_day), day_start(to_day)
        if not 0 < end - start <= MAX_DAYS * DAY_S:
            raise InvalidArgument(
                f"to_day is {to_day}, but must be 1 to {MAX_DAYS} days after from_day, {from_day}"
            )
        channel, now = _clock(context)
        keys: list[str] = []
        for section, is_prefix in home.sections(from_day, to_day):
            if is_prefix and section[0] in "rg":
                where = collection(home.utility)
                found: Iterator[tuple[str, bytes]] = context.range_private(
                    where, f"{section}{start:012d}", f"{section}{end:012d}"
                )
            else:
                found = home.read(section, is_prefix, "")
            for key, _ in found:
                place = _place(key)
                outside = place.start is not None and not start <= place.start < end
                if outside and not key.startswith("late/"):
                    continue
                if home.refusal(key, now, channel) is not None:
                    continue
                if len(keys) == limit:
                    return {"connection_id": connection_id, "keys": keys, "more": True}
                keys.append(key)
        return {"connection_id": connection_id, "keys": keys, "more": False}

    @transaction
    def purge(self, context: Context, *, connection_id: Identifier) -> dict[str, Any]:
        """Erase private records of a home from all peers; their keys travel as transient data."""
        home = _Home(context, connection_id)
        self._require_operator(context, home)
        if "keys" not in context.transient:
            raise InvalidArgument("the transient data has no entry named keys")
        keys = read_record(_Keys, context.transient["keys"], "keys").keys
        if not keys or list(keys) != sorted(dict.fromkeys(keys)):
            raise InvalidArgument("keys must be in order, each once, and one at least")
        channel, now = _clock(context)
        for key in keys:
            place = _place(key)
            owner = meter_of(context, place.owner).connection_id if place.is_meter else place.owner
            if owner not in ("", connection_id):
                raise InvalidArgument(f"the record {key} is not of {connection_id}")
            refusal = home.refusal(key, now, channel)
            if refusal is not None:
                raise Conflict(f"the record {key} may not be erased: {refusal}")
            context.purge_private(collection(home.utility), key)
        context.set_event(
            "erased",
            canonical_json({"connection_id": connection_id, "records": len(keys), "at": now}),
        )
        return {"connection_id": connection_id, "erased": len(keys)}

    # Pseudonyms

    @transaction
    def link(self, context: Context, *, utility: MspId) -> dict[str, Any]:
        """Say whose pseudonyms some connections are; it travels as transient data.

        A pseudonym is one home's for ever; the day on which that ends can be set later.
        """
        access.require_operator(context.creator, utility, f"link pseudonyms of {utility}")
        if "links" not in context.transient:
            raise InvalidArgument("the transient data has no entry named links")
        links = read_record(Links, context.transient["links"], "links").links
        names = [one.pseudonym for one in links]
        if not names or names != sorted(dict.fromkeys(names)):
            raise InvalidArgument("links must be in order of pseudonyms, each once, one at least")
        _, now = _clock(context)
        for one in links:
            day_start(one.from_day)
            if one.pseudonym == one.connection_id or one.connection_id in names:
                raise InvalidArgument(
                    f"{one.pseudonym} must be the pseudonym of a home, and of another name"
                )
            if one.until_day is not None and day_start(one.until_day) <= day_start(one.from_day):
                raise InvalidArgument(
                    f"until_day of {one.pseudonym} is {one.until_day}, but must be after from_day, "
                    f"{one.from_day}"
                )
            before = link_of(context, utility, one.pseudonym)
            if before == one:
                continue
            if before is not None and (
                replace(before, until_day=one.until_day) != one
                or before.until_day is not None
                or (one.until_day is not None and now >= day_start(one.until_day))
            ):
                raise Conflict(
                    f"{one.pseudonym} is linked already; only the day on which that ends can be "
                    "set, once and for the future"
                )
            commitments.put(context, utility, link_key(one.pseudonym), one)
        return {"utility": utility, "linked": len(links)}

    @query
    def linked(self, context: Context, *, utility: MspId, pseudonym: Identifier) -> Link | None:
        """Whose pseudonym a name is, on a peer of its utility; null for a name of its own."""
        access.require(
            access.is_operator(context.creator, utility)
            or residence(context, utility, pseudonym).ever,
            context.creator,
            f"see whose pseudonym {pseudonym} is",
            f"itself and operators of {utility}",
        )
        return link_of(context, utility, pseudonym)

    @staticmethod
    def _require_operator(context: Context, home: _Home) -> None:
        access.require_operator(
            context.creator, home.utility, f"erase what is kept of {home.connection_id}"
        )


def _is_own(own: Residence, start: int | None, now: int) -> bool:
    """Whether something is of a resident's time; what has no time is of who lives there now."""
    return own.at(now if start is None else start)


def _clock(context: Context) -> tuple[MeteringSettings, int]:
    channel = settings.read(context, MeteringSettings, "metering:Configure")
    return channel, settings.now(context, channel)
