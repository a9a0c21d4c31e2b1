"""One network of three utilities in this process, shared by the tests of this folder."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from consortium.node.contracts import ensure_contracts
from consortium.node.network import create_network
from consortium.node.nodes import EmbeddedNetwork
from tests.ports import first_port


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedNetwork]:
    """Running nodes with contracts; a test that stops one starts it again."""
    network = create_network(
        tmp_path_factory.mktemp("network") / "data", interval_s=60, base_port=first_port()
    )
    async with EmbeddedNetwork(network) as nodes:
        await ensure_contracts(network)
        yield nodes
