"""What is done to a cluster of orderers, and what becomes of it. See `script/faults --help`.

Every fault is done under load, in an arrangement that can do it: nodes in network namespaces of
their own on a bridge (links are taken down, routes become black holes), nodes behind proxies of
ours, or plainly on loopback. The command runs in a namespace of its own where it may, so that
nothing of it, no address, no mount, is seen by the rest of the machine or is there afterwards.
"""

import argparse
import asyncio
import contextlib
import ctypes
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.orderers import (
    OrdererCluster,
    OrdererProcess,
    Place,
    channel_status,
    on_loopback,
)
from consortium.ledger.channel_config import RaftOptions
from consortium.node.network import RAFT_TICK_S

from .proxy import Link
from .workload import Workload

ALONE = "GRIDLEDGER_FAULTS_ALONE"
"""Set in the environment of a process that has namespaces of its own."""
SMALL_DISK_MB = 24


@dataclass(frozen=True)
class Lengths:
    """How much of each fault."""

    kills: int
    pause_s: float
    hold_s: float
    """How long a link is cut, or slow, or unreliable."""
    rounds: int


SHORT = Lengths(kills=5, pause_s=3.0, hold_s=2.0, rounds=1)
LONG = Lengths(kills=100, pause_s=10.0, hold_s=10.0, rounds=5)


@dataclass
class Outcome:
    """One fault's."""

    fault: str
    orderers: int
    times: int = 0
    acknowledged: int = 0
    recovery_s: list[float] = field(default_factory=list)
    """The longest time without any acknowledgement to any client, each time."""
    elections: int = 0
    note: str = ""


class Cabling:
    """How the nodes of an arrangement reach each other: on loopback, without any means to harm."""

    def places(self, count: int) -> list[Place]:
        return on_loopback(count)

    async def wire(self, cluster: OrdererCluster) -> None:
        """Before the orderers start."""

    async def cut(self, source: int, target: int) -> None:
        """Nothing that `source` sends reaches `target`, and nobody is told."""
        raise NotImplementedError

    async def heal(self) -> None:
        """All is as in the beginning."""

    async def close(self) -> None:
        """The cluster has stopped."""


class Namespaces(Cabling):
    """Each node in a network namespace of its own, on a bridge in ours."""

    def __init__(self) -> None:
        self._holders: list[subprocess.Popen[bytes]] = []
        self._black_holes: set[tuple[int, int]] = set()

    @staticmethod
    def _address(number: int) -> str:
        return f"10.77.0.{number + 1}"

    def places(self, count: int) -> list[Place]:
        _ip("link add cluster type bridge")
        _ip("addr add 10.77.0.254/24 dev cluster")
        _ip("link set cluster up")
        places = []
        for number in range(count):
            holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
            self._holders.append(holder)
            ours = Path("/proc/self/ns/net").readlink()
            while Path(f"/proc/{holder.pid}/ns/net").readlink() == ours:
                time.sleep(0.01)
            _ip(f"link add node{number} type veth peer name eth0 netns {holder.pid}")
            _ip(f"link set node{number} master cluster up")
            inside = ("nsenter", "-t", str(holder.pid), "-n")
            for command in (
                "link set lo up",
                f"addr add {self._address(number)}/24 dev eth0",
                "link set eth0 up",
            ):
                _ip(command, inside)
            places.append(Place(self._address(number), 7050, 7051, inside))
        return places

    async def cut(self, source: int, target: int) -> None:
        self._black_holes.add((source, target))
        self._route("add", source, target)

    def _route(self, verb: str, source: int, target: int) -> None:
        inside = ("nsenter", "-t", str(self._holders[source].pid), "-n")
        _ip(f"route {verb} blackhole {self._address(target)}/32", inside)

    async def unplug(self, number: int) -> None:
        """Take a node's link down, for clients too."""
        _ip(f"link set node{number} down")

    async def heal(self) -> None:
        for number in range(len(self._holders)):
            _ip(f"link set node{number} up")
        for source, target in self._black_holes:
            self._route("del", source, target)
        self._black_holes.clear()

    async def close(self) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link del cluster")


class Proxies(Cabling):
    """Nodes on loopback that reach each other through a proxy for every way between two."""

    def __init__(self) -> None:
        self.links: dict[tuple[int, int], Link] = {}

    async def wire(self, cluster: OrdererCluster) -> None:
        numbers = range(len(cluster.orderers))
        for source in numbers:
            addresses = {}
            for target in numbers:
                if source == target:
                    continue
                host, port = cluster.orderers[target].cluster_address.split(":")
                link = self.links[source, target] = Link((host, int(port)))
                addresses[target] = await link.start()
            cluster.dial(source, addresses)

    async def cut(self, source: int, target: int) -> None:
        self.links[source, target].cut()

    async def heal(self) -> None:
        for link in self.links.values():
            link.delay_s = 0.0
            link.heal()

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in self.links.values()))


def _ip(command: str, prefix: Sequence[str] = ()) -> None:
    subprocess.run([*prefix, "ip", *command.split()], check=True, capture_output=True)


def alone() -> bool:
    """Whether this process has a network and mounts of its own."""
    return ALONE in os.environ


def be_alone(arguments: Sequence[str]) -> None:
    """Go on in namespaces of our own, if that is allowed and has not been done."""
    if alone() or os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return
    command = ["unshare", "-n", "-m", "--propagation", "private"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode != 0:
        return
    os.environ[ALONE] = "1"
    os.execvp(command[0], [*command, sys.executable, "-m", "tests.network.faults", *arguments])


# ------------------------------------------------------------------------------------- faults


@dataclass
class Scene:
    """A running cluster under load."""

    cluster: OrdererCluster
    cabling: Cabling
    load: Workload
    lengths: Lengths
    folder: Path
    offsets: list[mmap.mmap] = field(default_factory=list)
    """Of each node's wall clock, where they can be moved."""

    @property
    def count(self) -> int:
        return len(self.cluster.orderers)

    def others(self, number: int) -> list[int]:
        return [each for each in range(self.count) if each != number]

    async def leader(self) -> int:
        return await self.cluster.leader()

    async def elections(self) -> int:
        """The highest term that anybody knows."""
        terms = [0]
        for one in self.cluster.orderers:
            if one.process is not None:
                with contextlib.suppress(RuntimeError, TimeoutError):
                    async with asyncio.timeout(2):
                        terms.append(channel_status(await one.status())["term"])
        return max(terms)

    @asynccontextmanager
    async def healed(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.cabling.heal()


async def partition(scene: Scene, outcome: Outcome, cut_off: Sequence[int]) -> None:
    """Some nodes are unreachable for the rest, both ways."""
    inside = set(cut_off)
    async with scene.healed():
        for source, target in itertools.permutations(range(scene.count), 2):
            if (source in inside) != (target in inside):
                await scene.cabling.cut(source, target)
        outcome.recovery_s.append(await scene.load.goes_on())
        await asyncio.sleep(scene.lengths.hold_s)
        await scene.load.goes_on()
    await _all_follow(scene)


async def follower_cut_off(scene: Scene, outcome: Outcome) -> None:
    """One follower (of three) or two (of five) are cut off; the leader keeps the majority."""
    leader = await scene.leader()
    await partition(scene, outcome, scene.others(leader)[: (scene.count - 1) // 2])


async def leader_cut_off(scene: Scene, outcome: Outcome) -> None:
    """The leader is on the minority's side, and clients of both sides go on sending."""
    leader = await scene.leader()
    minority = [leader, *scene.others(leader)[: (scene.count - 1) // 2 - 1]]
    await partition(scene, outcome, minority)


async def unplugged(scene: Scene, outcome: Outcome) -> None:
    """The leader's link goes down, for its clients too."""
    assert isinstance(scene.cabling, Namespaces)
    async with scene.healed():
        await scene.cabling.unplug(await scene.leader())
        outcome.recovery_s.append(await scene.load.goes_on())
        await asyncio.sleep(scene.lengths.hold_s)
    await _all_follow(scene)


async def bridge(scene: Scene, outcome: Outcome) -> None:
    """Two halves that only one node between them can reach both of; it is not the leader."""
    leader = await scene.leader()
    _middle, *rest = scene.others(leader)
    half = (scene.count - 1) // 2
    left, right = [leader, *rest[: half - 1]], rest[half - 1 :]
    outcome.note = f"{len(left)} and {len(right)} nodes, one between"
    async with scene.healed():
        for one, other in itertools.product(left, right):
            await scene.cabling.cut(one, other)
            await scene.cabling.cut(other, one)
        outcome.recovery_s.append(await scene.load.goes_on())
        await asyncio.sleep(scene.lengths.hold_s)
        await scene.load.goes_on()
    await _all_follow(scene)


async def leader_unheard(scene: Scene, outcome: Outcome) -> None:
    """Nothing that the leader sends arrives; it hears all others."""
    leader = await scene.leader()
    async with scene.healed():
        for other in scene.others(leader):
            await scene.cabling.cut(leader, other)
        outcome.recovery_s.append(await scene.load.goes_on())
        await asyncio.sleep(scene.lengths.hold_s)
        await scene.load.goes_on()
    await _all_follow(scene)


async def leader_deaf(scene: Scene, outcome: Outcome) -> None:
    """Nothing that is sent to the leader arrives; all others hear it."""
    leader = await scene.leader()
    async with scene.healed():
        for other in scene.others(leader):
            await scene.cabling.cut(other, leader)
        outcome.recovery_s.append(await scene.load.goes_on())
        await asyncio.sleep(scene.lengths.hold_s)
        await scene.load.goes_on()
    await _all_follow(scene)


async def slow_network(scene: Scene, outcome: Outcome) -> None:
    """Every byte between orderers takes 200 ms each way."""
    assert isinstance(scene.cabling, Proxies)
    async with scene.healed():
        for link in scene.cabling.links.values():
            link.delay_s = 0.2
        await scene.load.goes_on(60)
        await asyncio.sleep(scene.lengths.hold_s)
        outcome.recovery_s.append(await scene.load.goes_on())


async def resets(scene: Scene, outcome: Outcome) -> None:
    """Connections between orderers are reset at random."""
    assert isinstance(scene.cabling, Proxies)
    draw = random.Random(1)
    ends = time.monotonic() + 2 * scene.lengths.hold_s
    links = list(scene.cabling.links.values())
    before = sum(link.resets for link in links)
    while time.monotonic() < ends:
        draw.choice(links).reset()
        await asyncio.sleep(draw.uniform(0.02, 0.4))
    outcome.recovery_s.append(await scene.load.goes_on())
    outcome.times = (sum(link.resets for link in links) - before) // 2
    await _all_follow(scene)


async def kills(scene: Scene, outcome: Outcome) -> None:
    """`kill -9`: the leader, a follower, all; all at the moment of an acknowledgement.

    When all are killed at that moment, no peer can have had the block yet.
    """
    names = ["leader", "follower", "all", "acknowledged", "leader"]
    cluster = scene.cluster
    for number in range(scene.lengths.kills):
        name = names[number % len(names)]
        leader = await scene.leader()
        match name:
            case "leader":
                chosen = [leader]
            case "follower":
                chosen = [scene.others(leader)[number % (scene.count - 1)]]
            case _:
                chosen = list(range(scene.count))
        if name == "acknowledged":
            done = asyncio.Event()

            def at_once() -> None:
                for one in cluster.orderers:
                    one.send_signal(signal.SIGKILL)
                done.set()  # noqa: B023  waited for below

            scene.load.on_acknowledged = at_once
            async with asyncio.timeout(20):
                await done.wait()
        await cluster.kill(*chosen)
        if len(chosen) == 1:
            outcome.recovery_s.append(await scene.load.goes_on(3))
        await cluster.start(*chosen)
        await scene.load.goes_on(3)
    outcome.times = scene.lengths.kills
    await _all_follow(scene)


async def paused(scene: Scene, outcome: Outcome) -> None:
    """SIGSTOP to the leader, then SIGCONT: it still believes that it leads."""
    one = scene.cluster.orderers[await scene.leader()]
    one.send_signal(signal.SIGSTOP)
    try:
        outcome.recovery_s.append(await scene.load.goes_on())
        await asyncio.sleep(scene.lengths.pause_s)
    finally:
        one.send_signal(signal.SIGCONT)
    outcome.note = f"for {scene.lengths.pause_s:g} s"
    await _all_follow(scene)


async def clock_jumps(scene: Scene, outcome: Outcome) -> None:
    """Every node's wall clock jumps by up to ten minutes, at once and one by one."""
    draw = random.Random(2)
    for _ in range(5 * scene.lengths.rounds):
        for offset in scene.offsets:
            _set_offset(offset, draw.uniform(-600, 600))
            await asyncio.sleep(0.1)
        clocks = [(await one.status())["clock"] for one in scene.cluster.orderers]
        if max(abs(clock - time.time()) for clock in clocks) < 5:
            raise AssertionError("the clocks did not move")
    outcome.recovery_s.append(await scene.load.goes_on())
    outcome.times = 5 * scene.lengths.rounds * scene.count
    outcome.note = "monotonic clock of one node a day ahead"
    for offset in scene.offsets:
        _set_offset(offset, 0.0)


async def full_disk(scene: Scene, outcome: Outcome) -> None:
    """The leader's disk is full: it stops taking part; with room and a restart it goes on."""
    number = 0
    one = scene.cluster.orderers[number]
    # The node with the small disk is to lead.
    while (leader := await scene.leader()) != number:
        await scene.cluster.kill(leader)
        await scene.cluster.start(leader)
        await scene.load.goes_on(3)
    disk = scene.folder / "small"
    fill = disk / "fill"
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with contextlib.suppress(OSError), fill.open("wb") as file:
        for _ in range(room // 4096 + 1):
            file.write(bytes(4096))
            file.flush()
    outcome.recovery_s.append(await scene.load.goes_on())
    async with asyncio.timeout(60):
        while channel_status(await one.status())["failure"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    outcome.note = channel_status(await one.status())["failure"]
    await scene.load.goes_on()
    fill.unlink()
    await one.kill()
    await one.start()
    await _all_follow(scene)


async def _all_follow(scene: Scene) -> None:
    """Every node takes part again: one leader for all, and all blocks arrive everywhere."""
    async with asyncio.timeout(60):
        while True:
            states = [
                channel_status(await one.status())
                for one in scene.cluster.orderers
                if one.process is not None
            ]
            heights = [state["height"] for state in states]
            if len({state["leader"] for state in states} | {0}) == 2 and (
                max(heights) - min(heights) <= 5
            ):
                return
            await asyncio.sleep(0.1)


def _set_offset(offset: mmap.mmap, seconds: float) -> None:
    offset[:8] = struct.pack("d", seconds)


# ------------------------------------------------------------------------------- arrangements


type Fault = Callable[[Scene, Outcome], Awaitable[None]]


@dataclass(frozen=True)
class Arrangement:
    """A cluster, and the faults that are done to it one after another."""

    orderers: int
    cabling: Callable[[], Cabling]
    faults: dict[str, Fault]
    alone: bool = False
    """Whether it needs namespaces of our own."""
    clocks: bool = False
    small_disk: bool = False


ARRANGEMENTS = {
    "namespaces": Arrangement(
        3,
        Namespaces,
        {
            "follower cut off": follower_cut_off,
            "leader cut off": leader_cut_off,
            "leader's link down": unplugged,
            "leader unheard": leader_unheard,
            "leader deaf": leader_deaf,
        },
        alone=True,
    ),
    "namespaces of five": Arrangement(
        5,
        Namespaces,
        {
            "two followers cut off": follower_cut_off,
            "leader and one cut off": leader_cut_off,
            "bridge": bridge,
        },
        alone=True,
    ),
    "proxies": Arrangement(
        3,
        Proxies,
        {
            "leader cut off (proxy)": leader_cut_off,
            "leader unheard (proxy)": leader_unheard,
            "leader deaf (proxy)": leader_deaf,
            "200 ms of delay": slow_network,
            "connections reset": resets,
        },
    ),
    "processes": Arrangement(3, Cabling, {"kill -9": kills, "SIGSTOP of the leader": paused}),
    "processes of five": Arrangement(5, Cabling, {"kill -9 (five)": kills}),
    "clocks": Arrangement(3, Cabling, {"clock jumps": clock_jumps}, clocks=True),
    "disk": Arrangement(
        3, Cabling, {"full disk of the leader": full_disk}, alone=True, small_disk=True
    ),
}


class Unavailable(Exception):
    """This machine cannot do it."""


async def run(name: str, lengths: Lengths, say: Callable[[str], None]) -> dict[str, object]:
    """One arrangement; raises Violation if a promise was broken, TimeoutError if it hangs."""
    arrangement = ARRANGEMENTS[name]
    if arrangement.alone and not alone():
        raise Unavailable("needs root, unshare and ip, and a kernel that lets them work")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="gridledger-faults-") as temporary:
        folder = Path(temporary)
        cabling = arrangement.cabling()
        try:
            places = cabling.places(arrangement.orderers)
            if arrangement.small_disk:
                places[0] = _on_small_disk(places[0], folder)
            cluster = OrdererCluster(
                folder / "cluster",
                places,
                batch_timeout="50ms",
                limits={"submit_timeout_s": 5.0},
                raft=RaftOptions(tick_interval_s=RAFT_TICK_S),
            )
            offsets = _movable_clocks(cluster, folder) if arrangement.clocks else []
            await cabling.wire(cluster)
            async with cluster:
                await cluster.leader()
                load = Workload(cluster)
                scene = Scene(cluster, cabling, load, lengths, folder, offsets)
                async with load.running():
                    for fault, do in arrangement.faults.items():
                        outcomes.append(await _one(scene, fault, do, say))
                seen = load.check()
        except Exception:
            for one in (folder / "cluster").glob("orderer*/log"):
                say(f"--- {one.parent.name}\n{one.read_text()[-3000:]}")
            raise
        finally:
            await cabling.close()
            if arrangement.small_disk:
                _unmount(folder / "small")
    return {"arrangement": name, "outcomes": [asdict(one) for one in outcomes], "seen": seen}


async def _one(scene: Scene, fault: str, do: Fault, say: Callable[[str], None]) -> Outcome:
    outcome = Outcome(fault, scene.count)
    term = await scene.elections()
    acknowledged = scene.load.acknowledged
    # What counts its own times goes through its rounds itself.
    rounds = 1 if do in (kills, clock_jumps, resets, full_disk) else scene.lengths.rounds
    for _ in range(rounds):
        await do(scene, outcome)
        await scene.load.goes_on(3)
    outcome.times = outcome.times or rounds
    outcome.acknowledged = scene.load.acknowledged - acknowledged
    outcome.elections = await scene.elections() - term
    worst = max(outcome.recovery_s, default=0.0)
    say(
        f"{outcome.fault}: {outcome.times} times, {outcome.acknowledged} acknowledged, "
        f"longest pause {worst:.2f} s, {outcome.elections} terms {outcome.note}"
    )
    return outcome


def _on_small_disk(place: Place, folder: Path) -> Place:
    (folder / "small").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MB}m", "tmpfs", str(folder / "small")],
        check=True,
    )
    return Place(
        place.host, place.client_port, place.cluster_port, place.prefix, folder / "small" / "data"
    )


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=False)


def _movable_clocks(cluster: OrdererCluster, folder: Path) -> list[mmap.mmap]:
    """Give each node a wall clock of its own, and one a monotonic clock of its own."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable("needs a C compiler (cc)")
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    offsets = []
    for one in cluster.orderers:
        path = one.folder / "clock"
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            offsets.append(mmap.mmap(file.fileno(), 0))
        one.environment |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(path)}
    time_namespace = ["unshare", "-T", "--monotonic", "86400", "--boottime", "86400"]
    if subprocess.run([*time_namespace, "true"], check=False, capture_output=True).returncode == 0:
        last: OrdererProcess = cluster.orderers[-1]
        last.prefix = [*last.prefix, *time_namespace]
    return offsets


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the faults, and print what became of the cluster."""
    parser = argparse.ArgumentParser(prog="script/faults", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=ARRANGEMENTS, help="one arrangement (may be repeated)"
    )
    parser.add_argument("--short", action="store_true", help="each fault briefly, as in CI")
    parser.add_argument("--json", action="store_true")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    be_alone(given)
    if alone():
        _ip("link set lo up")
    # Children whose parent was killed end with it.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    status = 0
    results = []
    for name in options.only or ARRANGEMENTS:
        try:
            results.append(asyncio.run(run(name, SHORT if options.short else LONG, say)))
        except Unavailable as reason:
            say(f"{name}: left out: this machine {reason}")
            results.append({"arrangement": name, "left_out": str(reason)})
        except (AssertionError, TimeoutError) as error:
            say(f"{name}: {type(error).__name__}: {error}")
            results.append({"arrangement": name, "violation": f"{type(error).__name__}: {error}"})
            status = 1
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print(table(results))
    return status


def table(results: Sequence[dict[str, object]]) -> str:
    """As it stands in docs/raft.md."""
    lines = [
        "| fault | orderers | times | acknowledged | pause, median / worst | terms | outcome |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines += [
            f"| {result['arrangement']} | | | | | | {key}: {result[key]} |"
            for key in ("left_out", "violation")
            if key in result
        ]
        outcomes = result.get("outcomes", [])
        assert isinstance(outcomes, list)
        for one in outcomes:
            times = sorted(one["recovery_s"])
            after = f"{times[len(times) // 2]:.2f} s / {times[-1]:.2f} s" if times else ""
            lines.append(
                f"| {one['fault']} | {one['orderers']} | {one['times']} | {one['acknowledged']} |"
                f" {after} | {one['elections']} |"
                f" linearizable, nothing lost{'; ' + one['note'] if one['note'] else ''} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
