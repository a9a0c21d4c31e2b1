"""Contracts in worker processes: what they may not do, what it costs, and that the node goes on."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from consortium.chaincode.executor import ExecutionError, ExecutorBusyError
from consortium.chaincode.simulator import TransactionSimulator
from consortium.chaincode.worker import (
    MAX_LOGGED_LINES,
    ContractCode,
    WorkerError,
    WorkerExecutor,
    WorkerSettings,
    check_code,
)
from consortium.wire import peer_pb2
from tests.consortium.chaincode.memory_state import MemoryState
from tests.consortium.chaincode.proposals import Member, invocation

SOURCES = Path(__file__).parent / "contract_sources"
UNRULY = ContractCode(SOURCES, "unruly")
MEMBER = Member("ann")
DEADLINE_S = 3.0


async def call(
    executor: WorkerExecutor, function: str, /, **argument: object
) -> tuple[peer_pb2.Response, TransactionSimulator]:
    simulator = TransactionSimulator(MemoryState(), "neighbourhood")
    asked = invocation(MEMBER, "unruly", f"unruly:{function}", argument)
    response, _ = await executor.invoke(asked, simulator)
    return response, simulator


async def value(executor: WorkerExecutor, function: str, /, **argument: object) -> Any:
    response, _ = await call(executor, function, **argument)
    assert response.status == 200, response
    return json.loads(response.payload)


@pytest.fixture
async def executor() -> AsyncIterator[WorkerExecutor]:
    executor = WorkerExecutor("unruly", UNRULY, WorkerSettings(workers=2, deadline_s=DEADLINE_S))
    yield executor
    await executor.close()


async def works(executor: WorkerExecutor) -> None:
    """The next transaction runs, whatever the last one did."""
    response, simulator = await call(executor, "Put", key="k", value="v")
    assert response.status == 200, response
    assert b"k" in simulator.results().rwset


@pytest.mark.parametrize("function", ["Loop", "LoopInC", "Power"])
async def test_a_contract_without_end_is_killed(executor: WorkerExecutor, function: str) -> None:
    """Also where Python itself does not get to look: in one call into C."""
    await works(executor)
    started = time.monotonic()
    response, simulator = await call(executor, function)
    assert (response.status, response.message) == (500, "unruly did not finish within 3 s")
    assert time.monotonic() - started < 30
    with pytest.raises(Exception, match="did not finish"):
        simulator.get_state("unruly", "k")
    await works(executor)


async def test_others_go_on_while_one_is_stuck(executor: WorkerExecutor) -> None:
    await works(executor)
    stuck = asyncio.create_task(call(executor, "LoopInC"))
    await asyncio.sleep(0.1)
    await works(executor)
    beside = 0
    while not stuck.done():
        await works(executor)
        beside += 1
    assert beside > 3
    assert (await stuck)[0].status == 500
    assert len(children()) <= 3


async def test_a_caller_that_goes_away_ends_its_transaction(executor: WorkerExecutor) -> None:
    await works(executor)
    stuck = asyncio.create_task(call(executor, "Loop"))
    await asyncio.sleep(0.2)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    await works(executor)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("Exit", "its worker process ended with status 7"),
        ("Crash", "its worker process ended by SIGSEGV"),
        ("Shut", "its worker process "),
        ("Garble", "its worker process's message is not a valid protos.ChaincodeMessage"),
        ("Flood", "its worker process sends a message of 2147483647 bytes, but may send"),
    ],
)
async def test_a_contract_that_breaks_its_process(
    executor: WorkerExecutor, function: str, problem: str
) -> None:
    """The proposal fails with a sentence, and the next one works."""
    await works(executor)
    with pytest.raises(WorkerError, match=problem) as failed:
        await call(executor, function)
    assert str(failed.value).startswith("chaincode unruly failed: ")
    await works(executor)


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        ("FillMemory", {"at_once": True}, "unruly needs more memory than a contract may have"),
        ("FillMemory", {"at_once": False}, "unruly needs more memory than a contract may have"),
        ("ExitPolitely", {}, "unruly failed; the peer's log has details"),
        ("Recurse", {}, "unruly failed; the peer's log has details"),
    ],
)
async def test_a_contract_that_fails(
    executor: WorkerExecutor, function: str, argument: dict[str, object], message: str
) -> None:
    await works(executor)
    response, _ = await call(executor, function, **argument)
    assert (response.status, response.message) == (500, message)
    await works(executor)


async def test_what_a_contract_prints_goes_to_the_log(
    executor: WorkerExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """Some lines of each transaction, shortened; much more does not stop it."""
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert await value(executor, "Print", lines=5000) is None
    await executor.close()
    printed = [record.getMessage() for record in caplog.records if "line" in record.getMessage()]
    assert 0 < len(printed) <= 2 * MAX_LOGGED_LINES
    assert max(map(len, printed)) < 600


async def test_least_privilege(executor: WorkerExecutor, tmp_path: Path) -> None:
    key = tmp_path / "sign.key.pem"
    key.write_text("secret")
    os.environ["GRIDLEDGER_SECRET"] = "hush"  # as an operator's shell may have it
    try:
        found = await value(executor, "Look", path=str(key))
    finally:
        del os.environ["GRIDLEDGER_SECRET"]
    assert found["environment"] == [
        "LC_ALL", "PYTHONHASHSEED", "PYTHONPATH", "PYTHONTZPATH", "PYTHONUTF8", "TZ",
    ]  # fmt: skip
    assert (found["folder"], found["hash_seed"], found["zone"]) == ("/", "0", ["UTC", "UTC"])
    # Nothing, the pipe of what it prints twice, its socket, and a library's file.
    assert len(found["descriptors"]) <= 5
    assert found["write"] in ("OSError", "PermissionError")
    assert (
        not Path("/tmp/written-by-a-contract").exists()
        or not Path("/tmp/written-by-a-contract").read_bytes()
    )
    if landlock():
        assert found["read"] == found["list"] == "PermissionError"
        # A root user may start processes, but neither they reach the node.
        assert os.getuid() == 0 or found["fork"] == "BlockingIOError"
        assert found["connect"] == "PermissionError"
        assert found["signal"] == "PermissionError"


def landlock() -> int:
    import ctypes

    libc = ctypes.CDLL(None)
    return int(libc.syscall(444, None, 0, 1)) >= 6


async def test_a_worker_dies_with_its_node() -> None:
    program = (
        "import asyncio; from tests.consortium.chaincode.test_worker import *\n"
        "async def main():\n"
        "    executor = WorkerExecutor('unruly', UNRULY, WorkerSettings(deadline_s=60))\n"
        "    stuck = asyncio.create_task(call(executor, 'LoopInC'))\n"
        "    while not executor._busy: await asyncio.sleep(0.05)\n"
        "    print(next(iter(executor._busy))._process.pid, flush=True)\n"
        "    await stuck\n"
        "asyncio.run(main())"
    )
    import sys

    node = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        cwd=Path(__file__).parents[3],
        stdout=asyncio.subprocess.PIPE,
    )
    assert node.stdout is not None
    pid = int(await asyncio.wait_for(node.stdout.readline(), 60))
    node.kill()
    await node.wait()
    async with asyncio.timeout(60):
        while running(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def children() -> list[int]:
    """This process's worker processes."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [
        int(pid)
        for pid in listed
        if running(int(pid)) and b"worker_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


async def test_code_that_cannot_be_loaded(tmp_path: Path) -> None:
    for name, source, problem in (
        ("broken", "import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("ends", "import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("empty", "CHAINCODE = 1", "has no CHAINCODE, which must be an api.Chaincode"),
        ("dies", "import os; os._exit(3)", "ended"),
    ):
        (tmp_path / f"{name}.py").write_text(source)
        code = ContractCode(tmp_path, name)
        with pytest.raises(WorkerError, match=problem):
            await asyncio.to_thread(check_code, code)
        executor = WorkerExecutor(name, code)
        with pytest.raises(WorkerError, match=rf"chaincode {name}: .*{problem}"):
            await call(executor, "Get", key="k")
        await executor.close()
    await asyncio.to_thread(check_code, UNRULY)


async def test_too_many_at_once(executor: WorkerExecutor) -> None:
    few = WorkerExecutor("unruly", UNRULY, WorkerSettings(workers=1, deadline_s=3, max_waiting=2))
    try:
        await works(few)
        stuck = [asyncio.create_task(call(few, "Sleep", seconds=60)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(ExecutorBusyError, match="2 transactions of chaincode unruly"):
            await call(few, "Get", key="k")
        messages = sorted([(await one)[0].message for one in stuck])
        assert messages == [
            "no worker process of unruly became free within 3 s",
            "unruly did not finish within 3 s",
        ]
    finally:
        await few.close()
    with pytest.raises(ExecutionError, match="this node is stopping"):
        await call(few, "Get", key="k")
    assert not children()
