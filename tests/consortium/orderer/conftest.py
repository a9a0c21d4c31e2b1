"""Fixtures: networks of real orderers, three utilities with one orderer each."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.consortium.orderer.network import Network

type NetworkFactory = Callable[..., Awaitable[Network]]


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    """Three running orderers that share one channel."""
    network = Network(tmp_path, 3)
    await network.start()
    yield network
    await network.stop()


@pytest.fixture
async def make_network(tmp_path: Path) -> AsyncIterator[NetworkFactory]:
    """Makes a network; keywords replace fields of its ChannelSpec."""
    made: list[Network] = []

    async def make(orderers: int = 3, **spec: object) -> Network:
        network = Network(tmp_path / str(len(made)), orderers, **spec)
        made.append(network)
        await network.start()
        return network

    yield make
    for network in made:
        await network.stop()
