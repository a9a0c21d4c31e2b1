"""Where a peer runs packages of sources: in itself, or in worker processes.

In itself it runs only the contracts that come with its own release, reviewed by us: a package that
differs from them by a byte goes to worker processes. A peer's operator may have those run in
workers too, all or some, and set the workers' limits, in the file `contracts.json` of the peer's
folder:

    {"own": "worker", "workers": 4, "memory_mib": 256, "deadline_s": 30}
    {"own": ["metering"]}

All of it may be left out; `own` is "in-process" unless it says "worker", or names the chaincodes
whose contracts run in workers. A peer that takes thousands of readings a second gains by
`["metering"]`: one core checks readings while another commits. The file is read when the peer
starts.
"""

import json
from pathlib import Path
from typing import Any

from consortium.chaincode.executor import EXECUTION_DEADLINE_S, Executor, InProcessExecutor
from consortium.chaincode.packages import Package, PackageError, PackageStore
from consortium.chaincode.worker import (
    MEMORY_BYTES,
    WORKERS,
    ContractCode,
    WorkerError,
    WorkerExecutor,
    WorkerSettings,
    check_code,
)
from consortium.contracts import chaincodes
from consortium.contracts.package import MODULES_FOLDER, chaincode_name, current_packages

SETTINGS_FILE = "contracts.json"
OWN = ("in-process", "worker")
_MIB = 1024 * 1024
_NUMBERS = {
    "workers": (1, 64, WORKERS),
    "memory_mib": (128, 65_536, MEMORY_BYTES // _MIB),
    "deadline_s": (1, 600, int(EXECUTION_DEADLINE_S)),
}
"""Least, most, default."""


class ContractSettingsError(ValueError):
    """A `contracts.json` that can't be used; the message says what is wrong with it."""


def read_settings(path: Path) -> tuple[tuple[str, ...], WorkerSettings]:
    """Which of our own chaincodes run in workers, and the limits of workers.

    Raises ContractSettingsError.
    """
    found: dict[str, Any] = {}
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ContractSettingsError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ContractSettingsError(f"{path} must be a JSON object")
    if unknown := sorted(found.keys() - {"own", *_NUMBERS}):
        raise ContractSettingsError(
            f"{path}: {unknown[0]!r} is not known; known are own, {', '.join(_NUMBERS)}"
        )
    own, names = found.get("own", OWN[0]), tuple(sorted(chaincodes()))
    if isinstance(own, list) and all(name in names for name in own):
        in_workers = tuple(own)
    elif own in OWN:
        in_workers = names if own == "worker" else ()
    else:
        raise ContractSettingsError(
            f"{path}: own is {own!r}, but must be {' or '.join(OWN)}, or a list of chaincodes that "
            f"run in workers, of {', '.join(names)}"
        )
    numbers = {}
    for name, (least, most, default) in _NUMBERS.items():
        value = numbers[name] = found.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise ContractSettingsError(
                f"{path}: {name} is {value!r}, but must be a whole number from {least} to {most}"
            )
    return in_workers, WorkerSettings(
        workers=numbers["workers"],
        memory_bytes=numbers["memory_mib"] * _MIB,
        deadline_s=numbers["deadline_s"],
    )


class SourceExecutors:
    """Gives each package of sources its executor, and closes them all."""

    def __init__(self, packages: PackageStore, settings_file: Path) -> None:
        """Raises ContractSettingsError."""
        self._packages = packages
        self._in_workers, self._settings = read_settings(settings_file)
        self._in_process = InProcessExecutor(chaincodes(), deadline_s=self._settings.deadline_s)
        self._workers: list[WorkerExecutor] = []

    def __call__(self, package: Package) -> Executor:
        """Loads the code to see that it can be run, where it is not our own: for threads.

        Raises PackageError, OSError.
        """
        name = chaincode_name(package)
        if name not in self._in_workers and package.package_id in current_packages():
            return self._in_process
        code = ContractCode(self._packages.unpacked(package) / MODULES_FOLDER, name)
        try:
            check_code(code, self._settings.memory_bytes)
        except WorkerError as error:
            raise PackageError(f"package {package.package_id}: {error}") from None
        worker = WorkerExecutor(name, code, self._settings)
        self._workers.append(worker)
        return worker

    async def close(self) -> None:
        """End what runs."""
        self._in_process.close()
        for worker in self._workers:
            await worker.close()
