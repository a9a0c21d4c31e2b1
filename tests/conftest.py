"""One pytest for everything: the ledger's tests beside those inside Home Assistant.

Home Assistant's pytest plugin is loaded for every test. It forbids sockets, puts event loops into
debug mode and fails a test that leaves a task, a timer or a thread behind. That is right in
`tests/gridledger/`; everywhere else tests talk over real sockets, on the loopback address only.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import hypothesis
import pytest
import pytest_socket

# Before the plugin puts a folder of its own with this name in front of the path.
import custom_components  # noqa: F401
from consortium.node.logs import quieten_grpc

HOME_ASSISTANT_TESTS = Path(__file__).parent / "gridledger"

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

# The plugin logs at DEBUG, at which gRPC may stop a test as it may a node.
quieten_grpc()

_disable_socket = pytest_socket.disable_socket


def _in_home_assistant(path: Path) -> bool:
    return path.is_relative_to(HOME_ASSISTANT_TESTS)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say what the plugin's hook of the same name, which follows, does to sockets."""
    if _in_home_assistant(item.path):
        pytest_socket.disable_socket = _disable_socket
    else:
        pytest_socket.disable_socket = lambda **_: pytest_socket.enable_socket()


@pytest.fixture(autouse=True, scope="session")
def grpc_thread() -> Iterator[None]:
    """Start gRPC's one thread here: no test starts it, so none leaves it behind."""
    grpc.aio.init_grpc_aio()
    yield
    grpc.aio.shutdown_grpc_aio()


@pytest.fixture
async def last_call() -> AsyncIterator[None]:
    """End a test's loop with a call that fails at once.

    gRPC has one queue for all loops of a process. What comes in for a loop that is closed, such as
    the end of a call that was cancelled, raises in the loop of a test that has nothing to do with
    it, and what stands behind it in the queue then waits. After this call nothing is left there.
    """
    yield
    async with grpc.aio.insecure_channel("127.0.0.1:9") as channel:
        with contextlib.suppress(grpc.RpcError):
            await channel.unary_unary("/test/Last")(b"", timeout=1)


@pytest.fixture(autouse=True)
def loop_ends_after_its_calls(request: pytest.FixtureRequest) -> None:
    """Before all other fixtures, so that it is over after them."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("last_call")


def _only_in_home_assistant(name: str):
    """Return a fixture that is the plugin's in Home Assistant's tests and nothing elsewhere."""

    @pytest.fixture(name=name, autouse=True)
    def fixture(request: pytest.FixtureRequest):
        return request.getfixturevalue(name) if _in_home_assistant(request.path) else None

    return fixture


# Home Assistant 2026.6's plugin lacks one of them; a Home Assistant that is newer than any plugin
# runs real processes only, without it.
plugin = sys.modules.get("pytest_homeassistant_custom_component.plugins")
for autouse in ("configure_event_loop", "enable_event_loop_debug", "verify_cleanup"):
    if hasattr(plugin, autouse):
        globals()[autouse] = _only_in_home_assistant(autouse)
