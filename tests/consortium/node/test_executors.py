"""Where a peer runs contracts, by its `contracts.json`."""

import json
from pathlib import Path

import pytest

from consortium.chaincode.executor import InProcessExecutor
from consortium.chaincode.packages import PackageStore
from consortium.chaincode.worker import WorkerExecutor, WorkerSettings
from consortium.contracts.package import package
from consortium.node.executors import (
    SETTINGS_FILE,
    ContractSettingsError,
    SourceExecutors,
    read_settings,
)


@pytest.mark.parametrize(
    ("written", "in_workers"),
    [
        ({}, ()),
        ({"own": "in-process"}, ()),
        ({"own": "worker"}, ("energy", "metering")),
        ({"own": ["metering"], "workers": 3}, ("metering",)),
    ],
)
def test_who_runs_in_workers(tmp_path: Path, written: object, in_workers: tuple[str, ...]) -> None:
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(written))
    found, settings = read_settings(tmp_path / SETTINGS_FILE)
    assert found == in_workers
    assert settings == WorkerSettings(workers=3 if "metering" in str(written) else 2)


@pytest.mark.parametrize("own", ["thread", ["billing"], [1], None, {"metering": "worker"}])
def test_what_own_may_be(tmp_path: Path, own: object) -> None:
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({"own": own}))
    with pytest.raises(ContractSettingsError, match=r"of energy, metering$"):
        read_settings(tmp_path / SETTINGS_FILE)


async def test_metering_beside_the_peer_and_energy_inside(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text('{"own": ["metering"]}')
    packages = PackageStore(tmp_path / "packages")
    sources = SourceExecutors(packages, tmp_path / SETTINGS_FILE)
    try:
        for name, kind in (("metering", WorkerExecutor), ("energy", InProcessExecutor)):
            assert type(sources(packages.save(package(name)))) is kind
    finally:
        await sources.close()
