"""What hangs behind what by date, plants with their places, and zones."""

import json
from typing import Any

import pytest

from consortium.chaincode.api import Conflict, ContractError, Forbidden, InvalidArgument, NotFound
from consortium.contracts.registry.grid import connections_behind, plants_at, transformers_behind
from tests.consortium.contracts.test_roles import context_of
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    SUPPLIER,
    World,
    energy_world,
    writes,
)

DAY = 86_400
SOON = NOON + DAY
LONG_AGO = NOON - 1000 * DAY


def transformer(name: str, **other: object) -> dict[str, Any]:
    return {
        "transformer_id": name,
        "utility": "AuroraMSP",
        "zone": "NORTH",
        "rated_va": 400_000,
        "no_load_w": 610,
        **other,
    }


@pytest.fixture
def world() -> World:
    world = energy_world()
    source = {"source_id": "S-1", "utility": "AuroraMSP", "kind": "substation", "zone": "NORTH"}
    world.submit(OPERATOR, "grid:RegisterSource", source=source)
    for name in ("T-1", "T-2"):
        world.submit(OPERATOR, "grid:RegisterTransformer", transformer=transformer(name))
    return world


def connect(
    world: World, name: str, connections: list[str], from_: int, caller: Any = OPERATOR
) -> Any:
    return world.submit(
        caller, "grid:Connect", transformer_id=name, connections=connections, **{"from": from_}
    )


def behind(world: World, at: int) -> list[tuple[str, ...]]:
    return [connections_behind(context_of(world), name, at) for name in ("T-1", "T-2")]


def test_homes_hang_behind_transformers_by_date(world: World) -> None:
    connect(world, "T-1", ["CP-0002", "CP-0001"], LONG_AGO)
    again = {"transformer_id": "T-1", "connections": ["CP-0001"], "from": LONG_AGO}
    assert not writes(world.simulate(OPERATOR, "grid:Connect", again).results)
    connect(world, "T-2", ["CP-0001"], SOON)
    assert behind(world, LONG_AGO - 900) == [(), ()]
    assert behind(world, SOON - 1) == [("CP-0001", "CP-0002"), ()]
    assert behind(world, SOON) == [("CP-0002",), ("CP-0001",)]
    children = world.evaluate(HOME, "grid:Behind", transformer_id="T-1")
    assert {"child": "CP-0001", "from": str(LONG_AGO), "until": str(SOON)} in children
    world.submit(
        OPERATOR, "grid:Disconnect", transformer_id="T-1", connections=["CP-0002"], at=SOON
    )
    assert behind(world, SOON) == [(), ("CP-0001",)]
    path = world.evaluate(HOME, "grid:Path", connection_id="CP-0002", at=SOON)
    assert path["transformer_id"] is None


def test_a_path_leads_from_home_to_source(world: World) -> None:
    connect(world, "T-1", ["CP-0001"], LONG_AGO)
    feed = {"source_id": "S-1", "transformers": ["T-1", "T-2"], "from": LONG_AGO}
    world.submit(OPERATOR, "grid:Feed", **feed)
    assert world.evaluate(HOME, "grid:Path", connection_id="CP-0001") == {
        "connection_id": "CP-0001",
        "at": str(NOON),
        "transformer_id": "T-1",
        "source_id": "S-1",
    }
    assert transformers_behind(context_of(world), "S-1", NOON) == ("T-1", "T-2")
    assert len(world.evaluate(HOME, "grid:Fed", source_id="S-1")) == 2
    paths = world.evaluate(HOME, "grid:Paths", connections=["CP-0001", "CP-0404"], at=NOON)
    assert [path["transformer_id"] for path in paths["paths"]] == ["T-1", None]


def test_bad_connections_change_nothing(world: World) -> None:
    world.submit(
        BOREAL_OPERATOR, "registry:RegisterConnection", connection_id="CP-B", utility="BorealMSP",
        zone="NORTH", max_export_w=1, max_import_w=1,
    )  # fmt: skip
    connect(world, "T-1", ["CP-0001"], LONG_AGO)
    before = world.state.values()
    for name, connections, from_, caller, error, sentence in (
        ("T-1", ["CP-0002"], NOON, HOME, Forbidden, "connect to transformer T-1"),
        ("T-1", ["CP-0002"], NOON, SUPPLIER, Forbidden, "operators of AuroraMSP"),
        ("T-1", ["CP-0002"], NOON, BOREAL_OPERATOR, Forbidden, "operators of AuroraMSP"),
        ("T-9", ["CP-0002"], NOON, OPERATOR, NotFound, "transformer T-9 is not registered"),
        ("T-1", ["CP-0404"], NOON, OPERATOR, NotFound, "CP-0404 is not registered"),
        ("T-1", ["CP-B"], NOON, OPERATOR, Conflict, "grid operator of CP-B .* is BorealMSP"),
        ("T-1", [], NOON, OPERATOR, InvalidArgument, "connections must name one at least"),
        ("T-1", ["CP-0002"] * 2, NOON, OPERATOR, InvalidArgument, "each once"),
        ("T-1", ["CP/2"], NOON, OPERATOR, InvalidArgument, r"connections\[0\]"),
        ("T-1", ["CP-0002"], NOON + 1, OPERATOR, InvalidArgument, "multiple of 900"),
        ("T-2", ["CP-0001"], NOON - 900, OPERATOR, Conflict, "never changes back in time"),
        ("T-2", ["CP-0001"], LONG_AGO, OPERATOR, Conflict, "never changes back in time"),
    ):
        with pytest.raises(error, match=sentence):
            connect(world, name, connections, from_, caller)
    with pytest.raises(ContractError, match="201 items, but may have 200") as refused:
        connect(world, "T-1", [f"CP-{i}" for i in range(201)], NOON)
    assert refused.value.status == 413
    with pytest.raises(Conflict, match="doesn't hang behind T-2"):
        world.submit(
            OPERATOR, "grid:Disconnect", transformer_id="T-2", connections=["CP-0001"], at=SOON
        )
    assert world.state.values() == before


def test_what_is_registered_stays(world: World) -> None:
    same = transformer("T-1")
    answer = world.simulate(OPERATOR, "grid:RegisterTransformer", {"transformer": same})
    assert not writes(answer.results)
    for change, error in (
        ({"no_load_w": 1}, Conflict),
        ({"rated_va": 0}, InvalidArgument),
        ({"rated_va": -5}, InvalidArgument),
        ({"rated_va": str(2**63)}, InvalidArgument),
        ({"zone": "n/w"}, InvalidArgument),
        ({"utility": "BorealMSP"}, Forbidden),
    ):
        with pytest.raises(error):
            world.submit(
                OPERATOR, "grid:RegisterTransformer", transformer=transformer("T-1", **change)
            )
    other = {"source_id": "S-1", "utility": "AuroraMSP", "kind": "plant", "zone": "NORTH"}
    with pytest.raises(Conflict, match="source S-1 is registered already, and differently"):
        world.submit(OPERATOR, "grid:RegisterSource", source=other)
    assert world.evaluate(HOME, "grid:Source", source_id="S-1")["kind"] == "substation"
    assert world.evaluate(HOME, "grid:Transformer", transformer_id="T-1")["no_load_w"] == "610"
    with pytest.raises(NotFound):
        world.evaluate(HOME, "grid:Source", source_id="S-9")


def plant(**other: object) -> dict[str, Any]:
    return {
        "plant_id": "PV-1",
        "connection_id": "CP-0001",
        "kind": "solar",
        "peak_w": 9800,
        "inverter_w": 8000,
        **other,
    }


def test_a_plant_changes_by_date(world: World) -> None:
    def enter(from_: int, **other: object) -> Any:
        return world.submit(OPERATOR, "grid:RegisterPlant", plant=plant(**other), **{"from": from_})

    enter(LONG_AGO)
    battery = {"battery_wh": 10_000, "battery_efficiency_ppm": 900_000}
    enter(SOON, **battery)
    again = {"plant": plant(**battery), "from": SOON}
    assert not writes(world.simulate(OPERATOR, "grid:RegisterPlant", again).results)
    assert [one.battery_wh for at in (NOON, SOON) for one in plants_at(
        context_of(world), "CP-0001", at)] == [0, 10_000]  # fmt: skip
    assert len(world.evaluate(HOME, "grid:Plant", plant_id="PV-1")) == 2
    now = world.evaluate(HOME, "grid:Plants", connection_id="CP-0001")
    assert [one["battery_wh"] for one in now] == ["0"]
    with pytest.raises(Conflict, match="never back in time"):
        enter(NOON, peak_w=1)
    with pytest.raises(Conflict, match="it doesn't move"):
        enter(SOON + DAY, connection_id="CP-0002")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "nuclear"}, "kind"),
        ({"peak_w": -1}, "peak_w is -1 W, but must be between 0"),
        ({"peak_w": str(2**63)}, "peak_w"),
        ({"inverter_w": 0}, "inverter_w is 0"),
        ({"battery_wh": 100}, "belong together"),
        ({"kind": "battery"}, "battery_wh is 0"),
        ({"battery_wh": 100, "battery_efficiency_ppm": 1_000_001}, "battery_efficiency_ppm"),
        ({"latitude_udeg": 47_370_000}, "belong together"),
        ({"latitude_udeg": 47_370_001, "longitude_udeg": 0}, "latitude_udeg must be a multiple"),
        ({"latitude_udeg": 91_000_000, "longitude_udeg": 0}, "latitude_udeg"),
        ({"plant_id": "PV/1"}, "plant_id"),
        ({"owner": "me"}, "owner is not a field"),
    ],
)
def test_bad_plants_change_nothing(world: World, change: dict[str, Any], sentence: str) -> None:
    before = world.state.values()
    with pytest.raises(InvalidArgument, match=sentence):
        world.submit(OPERATOR, "grid:RegisterPlant", plant=plant(**change), **{"from": NOON})
    for caller in (HOME, BOREAL_OPERATOR):
        with pytest.raises(Forbidden):
            world.submit(caller, "grid:RegisterPlant", plant=plant(), **{"from": NOON})
    raw = json.dumps({"plant": plant(), "from": NOON}).replace("9800", "9800.5").encode()
    with pytest.raises(InvalidArgument, match="is not an integer"):
        world.simulate(OPERATOR, "grid:RegisterPlant", raw)
    assert world.state.values() == before


def test_zones_hold_once_two_utilities_agree(world: World) -> None:
    terms = {"zone": "NORTH", "grid_operator": "AuroraMSP", "region": "CH"}
    world.submit(OPERATOR, "grid:ProposeZone", terms=terms, effective_from=SOON)
    with pytest.raises(NotFound):
        world.evaluate(HOME, "grid:Zone", zone="NORTH", at=SOON)
    world.submit(BOREAL_OPERATOR, "grid:ApproveZone", zone="NORTH", version=1)
    assert world.evaluate(HOME, "grid:Zone", zone="NORTH", at=SOON) == terms
    with pytest.raises(Forbidden):
        world.submit(HOME, "grid:ProposeZone", terms=terms, effective_from=SOON + DAY)
    with pytest.raises(Conflict, match="never back in time"):
        world.submit(OPERATOR, "grid:ProposeZone", terms=terms, effective_from=NOON)
