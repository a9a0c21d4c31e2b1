"""Contract `grid`: what hangs behind what, plants behind connections, and zones.

Energy comes from sources (substations and plants of their own), through transformers, to
connections. Who hangs where is dated, since lines are switched and homes are moved to another
transformer: losses of a day are those of the grid as it was.

    source/{source_id}, transformer/{transformer_id}
    above/{child}         where a connection (c/…) or a transformer (t/…) hangs: spans of parents
    behind/{parent}       all that ever hung behind a transformer (t/…) or a source (s/…)
    unit/{plant_id}       a plant's versions
    units/{connection_id} the plants at a connection
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    LimitExceeded,
    MspId,
    NotFound,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..common import access, agreements, dated, settings
from ..common.agreements import Agreement, Version
from ..common.clock import utc_text
from ..common.dated import Span
from .registry import Connection, connection_of, energy_settings
from .roles import acts_for, role_at

MAX_CHILDREN = 1_000
"""Behind one transformer or source, over all times."""
MAX_AT_ONCE = 200
MAX_PLANTS = 16
"""At one connection."""
MAX_PLANT_VERSIONS = 100
PLACE_GRID_UDEG = 10_000
"""Public places lie on a grid of 0.01 degrees, about a kilometre."""
_ZONE = "zone"

Power = Annotated[int, Integer(0, 10**12, "W")]
Ids = Annotated[tuple[Identifier, ...], AtMost(MAX_AT_ONCE)]
PlantKind = Annotated[
    str, Choice("solar", "wind", "hydro", "biomass", "cogeneration", "battery", "other")
]


@dataclass(frozen=True, slots=True)
class Source:
    """A substation, or a plant that feeds transformers."""

    source_id: Identifier
    utility: MspId
    kind: Annotated[str, Choice("substation", "plant")]
    zone: Identifier


@dataclass(frozen=True, slots=True)
class Transformer:
    """A transformer between the grid and connections."""

    transformer_id: Identifier
    utility: MspId
    """Its grid operator."""
    zone: Identifier
    rated_va: Annotated[int, Integer(1, 10**10, "VA")]
    no_load_w: Annotated[int, Integer(0, 10**8, "W")]
    """What it loses without any load, as its plate says."""


@dataclass(frozen=True, slots=True)
class _Spans:
    spans: Annotated[tuple[Span, ...], AtMost(dated.MAX_SPANS)]


@dataclass(frozen=True, slots=True)
class Child:
    """What hangs, or hung, behind something."""

    child: Identifier
    from_: Instant
    until: Instant | None


@dataclass(frozen=True, slots=True)
class _Children:
    children: Annotated[tuple[Child, ...], AtMost(MAX_CHILDREN)]


@dataclass(frozen=True, slots=True)
class Path:
    """Where a connection hangs at an instant."""

    connection_id: Identifier
    at: Instant
    transformer_id: Identifier | None
    source_id: Identifier | None


@dataclass(frozen=True, slots=True)
class Plant:
    """A generator or a battery behind a connection, as it is from an instant on."""

    plant_id: Identifier
    connection_id: Identifier
    kind: PlantKind
    peak_w: Power
    """Of its generator: kWp times 1,000."""
    inverter_w: Power
    """What its inverter lets out."""
    battery_wh: Annotated[int, Integer(0, 10**12, "Wh")] = 0
    battery_efficiency_ppm: Annotated[int, Integer(1, 1_000_000)] | None = None
    """Of a whole cycle."""
    latitude_udeg: Annotated[int, Integer(-90_000_000, 90_000_000, "micro-degrees")] | None = None
    longitude_udeg: Annotated[int, Integer(-180_000_000, 180_000_000, "micro-degrees")] | None = (
        None
    )


@dataclass(frozen=True, slots=True)
class PlantVersion:
    """A plant from an instant on."""

    from_: Instant
    plant: Plant


@dataclass(frozen=True, slots=True)
class _PlantVersions:
    versions: Annotated[tuple[PlantVersion, ...], AtMost(MAX_PLANT_VERSIONS)]


@dataclass(frozen=True, slots=True)
class _PlantNames:
    plants: Annotated[tuple[Identifier, ...], AtMost(MAX_PLANTS)]


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone of the market: whose grid it is and whose calendar it keeps."""

    zone: Identifier
    grid_operator: MspId
    region: Identifier
    """Of the calendar; see tariff:Calendar."""


# What other contracts of chaincode `energy` read


def transformer_of(context: Context, transformer_id: str) -> Transformer:
    """A transformer; raises NotFound."""
    stored = context.get_state(f"transformer/{transformer_id}")
    if stored is None:
        raise NotFound(
            f"transformer {transformer_id} is not registered; its grid operator calls "
            "grid:RegisterTransformer"
        )
    return stored_record(Transformer, stored)


def connections_behind(context: Context, transformer_id: str, at: int) -> tuple[str, ...]:
    """The connections behind a transformer at an instant, in order of their names."""
    return _present(_children(context, f"t/{transformer_id}"), at)


def transformers_behind(context: Context, source_id: str, at: int) -> tuple[str, ...]:
    """The transformers behind a source at an instant, in order of their names."""
    return _present(_children(context, f"s/{source_id}"), at)


def path_of(context: Context, connection_id: str, at: int) -> Path:
    """Where a connection hangs at an instant."""
    transformer = dated.holder_at(_above(context, f"c/{connection_id}"), at)
    source = None
    if transformer is not None:
        source = dated.holder_at(_above(context, f"t/{transformer}"), at)
    return Path(connection_id, at, transformer, source)


def plants_at(context: Context, connection_id: str, at: int) -> list[Plant]:
    """The plants of a connection as they are at an instant."""
    stored = context.get_state(f"units/{connection_id}")
    names = () if stored is None else stored_record(_PlantNames, stored).plants
    plants = []
    for name in names:
        versions = _versions(context, name)
        found = [version.plant for version in versions if version.from_ <= at]
        plants += found[-1:]
    return plants


def zone_at(context: Context, zone: str, at: int) -> Zone:
    """The terms of a zone at an instant; raises NotFound."""
    return agreements.in_force(context, _ZONE, zone, at, Zone)


def _above(context: Context, child: str) -> tuple[Span, ...]:
    stored = context.get_state(f"above/{child}")
    return () if stored is None else stored_record(_Spans, stored).spans


def _children(context: Context, parent: str) -> tuple[Child, ...]:
    stored = context.get_state(f"behind/{parent}")
    return () if stored is None else stored_record(_Children, stored).children


def _present(children: Sequence[Child], at: int) -> tuple[str, ...]:
    return tuple(
        sorted(
            child.child
            for child in children
            if child.from_ <= at and (child.until is None or at < child.until)
        )
    )


def _versions(context: Context, plant_id: str) -> tuple[PlantVersion, ...]:
    stored = context.get_state(f"unit/{plant_id}")
    return () if stored is None else stored_record(_PlantVersions, stored).versions


class Grid(Contract):
    """Topology, plants and zones."""

    name: ClassVar[str] = "grid"

    @transaction
    def register_source(self, context: Context, *, source: Source) -> Source:
        """Enter a substation or a feeding plant; the same again changes nothing."""
        self._require(context, source.utility, "register sources")
        self._enter(context, f"source/{source.source_id}", source, f"source {source.source_id}")
        return source

    @transaction
    def register_transformer(self, context: Context, *, transformer: Transformer) -> Transformer:
        """Enter a transformer; the same again changes nothing."""
        self._require(context, transformer.utility, "register transformers")
        name = transformer.transformer_id
        self._enter(context, f"transformer/{name}", transformer, f"transformer {name}")
        return transformer

    @transaction
    def connect(
        self, context: Context, *, transformer_id: Identifier, connections: Ids, from_: Instant
    ) -> list[Child]:
        """Hang connections behind a transformer from an instant on, and off where they hung."""
        transformer = transformer_of(context, transformer_id)
        self._require(context, transformer.utility, f"connect to transformer {transformer_id}")
        for name in connections:
            connection = connection_of(context, name)
            operator = role_at(context, connection, "grid_operator", from_)
            if operator != transformer.utility:
                raise Conflict(
                    f"the grid operator of {name} at {utc_text(from_)} is {operator}, not "
                    f"{transformer.utility}"
                )
        return self._hang(context, "t", transformer_id, "c", connections, from_)

    @transaction
    def feed(
        self, context: Context, *, source_id: Identifier, transformers: Ids, from_: Instant
    ) -> list[Child]:
        """Feed transformers from a source from an instant on."""
        source = self._source(context, source_id)
        self._require(context, source.utility, f"feed from {source_id}")
        for name in transformers:
            utility = transformer_of(context, name).utility
            if utility != source.utility:
                raise Conflict(f"transformer {name} is {utility}'s, not {source.utility}'s")
        return self._hang(context, "s", source_id, "t", transformers, from_)

    @transaction
    def disconnect(
        self, context: Context, *, transformer_id: Identifier, connections: Ids, at: Instant
    ) -> list[Child]:
        """Take connections off a transformer without hanging them elsewhere."""
        transformer = transformer_of(context, transformer_id)
        self._require(context, transformer.utility, f"disconnect from {transformer_id}")
        self._check_ids("connections", connections)
        channel = energy_settings(context)
        dated.check_instant("at", at, channel.interval_s)
        now = settings.now(context, channel)
        children = list(_children(context, f"t/{transformer_id}"))
        for name in connections:
            spans = _above(context, f"c/{name}")
            if not spans or spans[-1].holder != transformer_id:
                raise Conflict(f"connection {name} doesn't hang behind {transformer_id}")
            changed = dated.finish(spans, f"the place of {name}", at, now)
            if changed != spans:
                context.put_state(f"above/c/{name}", canonical_json(_Spans(changed)))
                children = _ended(children, name, at)
        self._put_children(context, f"t/{transformer_id}", tuple(children))
        return children

    @query
    def source(self, context: Context, *, source_id: Identifier) -> Source:
        """A source."""
        return self._source(context, source_id)

    @query
    def transformer(self, context: Context, *, transformer_id: Identifier) -> Transformer:
        """A transformer."""
        return transformer_of(context, transformer_id)

    @query
    def behind(self, context: Context, *, transformer_id: Identifier) -> list[Child]:
        """All connections that hang or hung behind a transformer, in order of their hanging."""
        transformer_of(context, transformer_id)
        return list(_children(context, f"t/{transformer_id}"))

    @query
    def fed(self, context: Context, *, source_id: Identifier) -> list[Child]:
        """All transformers that a source feeds or fed."""
        self._source(context, source_id)
        return list(_children(context, f"s/{source_id}"))

    @query
    def path(
        self, context: Context, *, connection_id: Identifier, at: Instant | None = None
    ) -> Path:
        """Where a connection hangs at an instant; without one, now."""
        connection_of(context, connection_id)
        now = settings.now(context, energy_settings(context))
        return path_of(context, connection_id, now if at is None else at)

    @query
    def paths(
        self,
        context: Context,
        *,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_CHILDREN)],
        at: Instant,
    ) -> dict[str, list[Path]]:
        """Where many connections hang at an instant; nulls for what hangs nowhere."""
        return {"paths": [path_of(context, name, at) for name in connections]}

    @query
    def above(self, context: Context, *, connection_id: Identifier) -> dict[str, list[str]]:
        """All transformers and sources that a connection hangs or ever hung behind."""
        connection_of(context, connection_id)
        transformers = [span.holder for span in _above(context, f"c/{connection_id}")]
        sources = [span.holder for name in transformers for span in _above(context, f"t/{name}")]
        return {"nodes": list(dict.fromkeys([*transformers, *sources]))}

    @transaction
    def register_plant(self, context: Context, *, plant: Plant, from_: Instant) -> PlantVersion:
        """Enter a plant, or how it is from a later instant on; the same again changes nothing."""
        connection = connection_of(context, plant.connection_id)
        self._require_plants(context, connection, from_)
        _check_plant(plant)
        channel = energy_settings(context)
        dated.check_instant("from", from_, channel.interval_s)
        made = PlantVersion(from_, plant)
        versions = _versions(context, plant.plant_id)
        if versions and versions[-1] == made:
            return made
        if not versions:
            self._list_plant(context, plant)
        else:
            self._check_newer(made, versions, settings.now(context, channel))
        context.put_state(
            f"unit/{plant.plant_id}", canonical_json(_PlantVersions((*versions, made)))
        )
        return made

    @query
    def plant(self, context: Context, *, plant_id: Identifier) -> list[PlantVersion]:
        """A plant, with how it was before."""
        versions = _versions(context, plant_id)
        if not versions:
            raise NotFound(f"plant {plant_id} is not registered; see grid:RegisterPlant")
        return list(versions)

    @query
    def plants(
        self, context: Context, *, connection_id: Identifier, at: Instant | None = None
    ) -> list[Plant]:
        """The plants at a connection at an instant; without one, now."""
        connection_of(context, connection_id)
        now = settings.now(context, energy_settings(context))
        return plants_at(context, connection_id, now if at is None else at)

    @transaction
    def propose_zone(self, context: Context, *, terms: Zone, effective_from: Instant) -> Agreement:
        """Propose a version of a zone."""
        return agreements.propose(context, _ZONE, terms.zone, effective_from, terms)

    @transaction
    def approve_zone(self, context: Context, *, zone: Identifier, version: Version) -> Agreement:
        """Approve a version of a zone for the caller's utility."""
        return agreements.approve(context, _ZONE, zone, version)

    @query
    def zone(self, context: Context, *, zone: Identifier, at: Instant | None = None) -> Zone:
        """A zone as it is in force at an instant; without one, now."""
        now = settings.now(context, energy_settings(context))
        return zone_at(context, zone, now if at is None else at)

    def _require(self, context: Context, utility: str, act: str) -> None:
        access.require_operator(context.creator, utility, act)

    def _require_plants(self, context: Context, connection: Connection, at: int) -> None:
        operator = role_at(context, connection, "grid_operator", at)
        access.require(
            acts_for(context, context.creator, operator),
            context.creator,
            f"register plants at {connection.connection_id}",
            f"operators of the grid operator, {operator},",
        )

    def _enter(self, context: Context, key: str, record: Source | Transformer, what: str) -> None:
        stored = context.get_state(key)
        if stored is None:
            context.put_state(key, canonical_json(record))
        elif stored_record(type(record), stored) != record:
            raise Conflict(f"{what} is registered already, and differently")

    def _source(self, context: Context, source_id: str) -> Source:
        stored = context.get_state(f"source/{source_id}")
        if stored is None:
            raise NotFound(
                f"source {source_id} is not registered; its grid operator calls grid:RegisterSource"
            )
        return stored_record(Source, stored)

    def _check_ids(self, name: str, ids: tuple[str, ...]) -> None:
        if not ids or len(dict.fromkeys(ids)) != len(ids):
            raise InvalidArgument(f"{name} must name one at least, each once")

    def _hang(
        self,
        context: Context,
        parent_kind: str,
        parent: str,
        child_kind: str,
        names: tuple[str, ...],
        from_: int,
    ) -> list[Child]:
        """Move children to a parent: their own spans, and the lists of old and new parents."""
        self._check_ids("connections" if child_kind == "c" else "transformers", names)
        channel = energy_settings(context)
        dated.check_instant("from", from_, channel.interval_s)
        now = settings.now(context, channel)
        place = f"{parent_kind}/{parent}"
        lists: dict[str, list[Child]] = {place: list(_children(context, place))}
        for name in names:
            spans = _above(context, f"{child_kind}/{name}")
            changed = dated.begin(
                spans, f"the place of {name}", parent, from_, now, known_before=True
            )
            if changed == spans:
                continue
            context.put_state(f"above/{child_kind}/{name}", canonical_json(_Spans(changed)))
            if spans and spans[-1].until is None:
                old = f"{parent_kind}/{spans[-1].holder}"
                lists[old] = _ended(lists.get(old) or list(_children(context, old)), name, from_)
            lists[place].append(Child(name, from_, None))
        for key, children in lists.items():
            self._put_children(context, key, tuple(children))
        return lists[place]

    def _put_children(self, context: Context, place: str, children: tuple[Child, ...]) -> None:
        if len(children) > MAX_CHILDREN:
            raise LimitExceeded(
                f"{place[2:]} would have had {len(children)} places, but may have {MAX_CHILDREN}"
            )
        if children != _children(context, place):
            context.put_state(f"behind/{place}", canonical_json(_Children(children)))

    def _list_plant(self, context: Context, plant: Plant) -> None:
        key = f"units/{plant.connection_id}"
        stored = context.get_state(key)
        names = () if stored is None else stored_record(_PlantNames, stored).plants
        if len(names) >= MAX_PLANTS:
            raise LimitExceeded(
                f"connection {plant.connection_id} has {MAX_PLANTS} plants, the limit"
            )
        context.put_state(key, canonical_json(_PlantNames((*names, plant.plant_id))))

    def _check_newer(
        self, made: PlantVersion, versions: tuple[PlantVersion, ...], now: int
    ) -> None:
        last = versions[-1]
        name = made.plant.plant_id
        if last.plant.connection_id != made.plant.connection_id:
            raise Conflict(f"plant {name} is at {last.plant.connection_id}; it doesn't move")
        if made.from_ <= last.from_ or made.from_ < now:
            raise Conflict(
                f"from is {utc_text(made.from_)}, but plant {name} changes after "
                f"{utc_text(max(last.from_, now))}: never back in time"
            )
        if len(versions) >= MAX_PLANT_VERSIONS:
            raise LimitExceeded(f"plant {name} has changed {MAX_PLANT_VERSIONS} times, the limit")


def _ended(children: Sequence[Child], name: str, at: int) -> list[Child]:
    """The list with the open place of one child ended; one that never began is left out."""
    ended = []
    for child in children:
        if child.child == name and child.until is None:
            if child.from_ < at:
                ended.append(Child(name, child.from_, at))
        else:
            ended.append(child)
    return ended


def _check_plant(plant: Plant) -> None:
    """Raise InvalidArgument for a plant that can't be, or is placed too exactly."""
    if (plant.battery_wh > 0) != (plant.battery_efficiency_ppm is not None):
        raise InvalidArgument(
            "battery_wh and battery_efficiency_ppm belong together: both, or neither"
        )
    if plant.kind == "battery" and not plant.battery_wh:
        raise InvalidArgument("battery_wh is 0, but the plant is a battery")
    if not plant.inverter_w:
        raise InvalidArgument("inverter_w is 0: a plant that lets nothing out is none")
    if (plant.latitude_udeg is None) != (plant.longitude_udeg is None):
        raise InvalidArgument("latitude_udeg and longitude_udeg belong together")
    for name, value in (
        ("latitude_udeg", plant.latitude_udeg),
        ("longitude_udeg", plant.longitude_udeg),
    ):
        if value is not None and value % PLACE_GRID_UDEG:
            raise InvalidArgument(
                f"{name} must be a multiple of {PLACE_GRID_UDEG} (0.01 degrees): this record is "
                "public, so the place is rounded; the exact one stays with the utility, see "
                "metering:PlacePlant"
            )
