"""Every service under spoiled requests, for a few seconds; `script/fuzz` goes on for longer.

A seed makes the inputs the same in each run. After them no node has logged an exception that
nobody caught, all have answered with a status, and all still commit.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from consortium.node.network import create_network
from consortium.node.nodes import EmbeddedNetwork
from gridledger_client import GatewayClient
from tests.fuzz.runner import Fuzzing, fuzzing, inventions, mutations
from tests.fuzz.targets import World, targets
from tests.ports import first_port

from .conftest import RunningNetwork

pytestmark = [pytest.mark.network]

ROOT = Path(__file__).parents[2]
SEED = 20261121
MUTATIONS, INVENTIONS = 24, 8
NOT_OURS = {
    "/protos.Chaincode/Connect": "tests/consortium/chaincode/test_fuzzing.py",
}
"""Services of other processes than a network's nodes, and the tests that send them rubbish."""


async def test_no_spoiled_request_harms_a_node(
    running: RunningNetwork, operator: GatewayClient, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    async with fuzzing(
        running.network, operator, [running.log], [running.process.pid], tmp_path
    ) as run:
        for target in run.targets.values():
            await run.run(list(mutations(target, chance, MUTATIONS)))
            invented = await asyncio.to_thread(
                inventions, target, run.world, chance.getrandbits(32), INVENTIONS
            )
            await run.run(invented)
        await run.still_commits()
        run.watched.check()
        _reached(run)


def _reached(run: Fuzzing) -> None:
    """Every service was there, and some spoiled requests got beyond the first check."""
    absent = {name for (name, status) in run.statuses if status == "UNIMPLEMENTED"}
    assert absent <= {one.name for one in run.targets.values() if one.may_be_absent}
    assert len({status for _, status in run.statuses}) > 6, run.statuses


async def test_every_service_has_a_target(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    running: RunningNetwork,
    operator: GatewayClient,
) -> None:
    """What the nodes register with their servers is what is fuzzed; a new service fails here."""
    served: set[str] = set()
    make = grpc.method_handlers_generic_handler

    def recorded(service: str, handlers: dict[str, Any]) -> grpc.GenericRpcHandler:
        served.update(f"/{service}/{method}" for method in handlers)
        return make(service, handlers)

    start: Any = web.AppRunner.__init__

    def runner(self: web.AppRunner, app: web.Application, **options: Any) -> None:
        served.update(resource.canonical for resource in app.router.resources())
        start(self, app, **options)

    monkeypatch.setattr(grpc, "method_handlers_generic_handler", recorded)
    monkeypatch.setattr(web.AppRunner, "__init__", runner)
    network = create_network(tmp_path / "data", base_port=first_port())
    async with EmbeddedNetwork(network):
        pass
    known = await targets(World(running.network, operator))
    covered = {one.path for one in known.values()} | set(NOT_OURS)
    assert served - covered == set(), "these have no target in tests/fuzz/targets.py"
    assert len(served) > 20
    for path, test in NOT_OURS.items():
        service, method = path.strip("/").split("/")
        source = (ROOT / test).read_text()
        assert service in source, test
        assert f'"{method}"' in source, test
