"""What a process's nodes are at, for who watches over them: health, metrics, version.

    GET /healthz   200, or 503 and which node has what trouble
    GET /metrics   Prometheus' text format
    GET /version   what runs here

The answers are those of Fabric's operations service (docs/source/operations_service.rst), and its
metrics' names stand for the same things, so that its dashboards and alerts fit; our own begin with
`gridledger_`. Several nodes may share a process, so that a label `node` tells them apart. Nothing
here is secret and nothing can be changed, so that it is plain HTTP, for this machine alone: what
scrapes from elsewhere comes through a proxy of its operator's.
"""

import json
import os
import platform
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from consortium.orderer.chain import Chain
from consortium.orderer.node import Orderer
from consortium.peer.channel import ChannelPeer
from consortium.wire import peer_pb2

from .network import HOST
from .nodes import Node, NodeError, OrdererNode, PeerNode, expiries, listening, new_certificate_by

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNCONNECTED_GRACE_S = 30.0
"""Peers change orderers now and then; without one for longer is trouble."""
RELATIONS = ("other", "consenter", "follower", "config-tracker")
STATUSES = ("inactive", "active", "onboarding", "failed")
"""Fabric's numbers for them (orderer/common/channelparticipation metrics)."""

type Labels = Mapping[str, str]


class Metric(NamedTuple):
    """What is counted, and its values by their labels."""

    name: str
    kind: str
    """counter, gauge or summary."""
    text: str
    values: tuple[tuple[str, Labels, float], ...]
    """Suffix of the name, labels, value."""


class Operations:
    """Listens for one process; its nodes are asked anew at each request."""

    def __init__(self, nodes: Sequence[Node], port: int) -> None:
        self._nodes = nodes
        self._wanted_port = port
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """Where it listens, once it is started."""
        assert self._runner
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listen; raises NodeError when the port is taken."""
        application = web.Application(client_max_size=1024)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/version", self._version)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            with listening("the operations service"):
                await web.TCPSite(self._runner, HOST, self._wanted_port).start()
        except NodeError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _request: web.Request) -> web.Response:
        failed = [
            {"component": node.name, "reason": reason}
            for node in self._nodes
            for reason in troubles(node)
        ]
        answer: dict[str, object] = {
            "status": "Service Unavailable" if failed else "OK",
            "time": datetime.now(UTC).isoformat(),
        }
        if failed:
            answer["failed_checks"] = failed
        return web.json_response(answer, status=503 if failed else 200)

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = exposition((*process_metrics(), *node_metrics(self._nodes)))
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"Version": metadata.version("gridledger"), "Python": platform.python_version()}
        )


def troubles(node: Node) -> Iterator[str]:
    """What keeps a node from its work, in sentences."""
    if node.failure.reason is not None:
        yield str(node.failure.reason)
    for path, end in expiries(node):
        if end <= datetime.now(UTC):
            yield (
                f"the certificate {path} ended at {end.isoformat()}; "
                f"`{new_certificate_by(path)}` makes a new one"
            )
    if isinstance(node, PeerNode):
        for name, channel in sorted(node.channels.items()):
            lone_s = channel.unconnected_for_s()
            if lone_s > UNCONNECTED_GRACE_S:
                yield (
                    f"channel {name} stands at height {channel.ledger.height}: no orderer could be "
                    f"followed for {lone_s:.0f} s"
                )
    elif isinstance(node, OrdererNode):
        for info in node.orderer.channel_infos():
            if info.status == "failed":
                yield f"channel {info.name} has failed: {info.problem}"
        for name, chain in sorted(node.orderer.channels.items()):
            if isinstance(chain, Chain) and chain.failure is None and not chain.available:
                yield (
                    f"channel {name} takes nothing: it has had no leader for "
                    f"{chain.leaderless_for_s():.0f} s; are more than half of its orderers up?"
                )


def exposition(metrics: Iterable[Metric]) -> str:
    """Prometheus' text format, 0.0.4."""
    lines = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.text}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for suffix, labels, value in metric.values:
            # JSON escapes backslash, quote and line end as the format wants them.
            told = ",".join(
                f"{name}={json.dumps(label, ensure_ascii=False)}" for name, label in labels.items()
            )
            lines.append(f"{metric.name}{suffix}{f'{{{told}}}' if told else ''} {value:.15g}")
    return "\n".join((*lines, ""))


def process_metrics() -> Iterator[Metric]:
    """Of this process, by the names that all of Prometheus' clients use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield _plain(
        "process_cpu_seconds_total",
        "counter",
        "CPU time spent, by user and system.",
        used.ru_utime + used.ru_stime,
    )
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[1])
        yield _plain(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory.",
            pages * os.sysconf("SC_PAGE_SIZE"),
        )
        files = sum(1 for _ in os.scandir("/proc/self/fd"))
        yield _plain("process_open_fds", "gauge", "Open file descriptors.", files)


def node_metrics(nodes: Sequence[Node]) -> Iterator[Metric]:
    """Of these nodes."""
    peers = [
        ({"node": node.name, "channel": name}, channel)
        for node in nodes
        if isinstance(node, PeerNode)
        for name, channel in sorted(node.channels.items())
    ]
    orderers = [(node.name, node.orderer) for node in nodes if isinstance(node, OrdererNode)]
    if peers:
        yield from _peer_metrics(peers)
    if orderers:
        yield from _orderer_metrics(orderers)
    yield Metric(
        "gridledger_certificate_ends_seconds",
        "gauge",
        "When a certificate ends, in seconds since 1970.",
        tuple(
            (
                "",
                {"node": node.name, "certificate": "/".join((path.parent.name, path.name[:-9]))},
                end.timestamp(),
            )
            for node in nodes
            for path, end in expiries(node)
        ),
    )
    agents = [
        (node.name, node.scheduled.agent)
        for node in nodes
        if isinstance(node, PeerNode) and node.scheduled is not None
    ]
    if agents:
        yield Metric(
            "gridledger_agent_calls",
            "counter",
            "Calls that the utility's agent has made, by function and outcome: "
            "done, late, refused or failed.",
            tuple(
                ("", {"node": name, "function": function, "outcome": outcome}, count)
                for name, agent in agents
                for (function, outcome), count in sorted(agent.counts.items())
            ),
        )


def _peer_metrics(peers: list[tuple[dict[str, str], ChannelPeer]]) -> Iterator[Metric]:
    yield _by_channel(
        "ledger_blockchain_height",
        "gauge",
        "Blocks on this peer's disk.",
        [(labels, channel.ledger.height) for labels, channel in peers],
    )
    yield _by_channel(
        "ledger_transaction_count",
        "counter",
        "Transactions committed since the start, by validation code.",
        [
            (labels | {"validation_code": _code_name(code)}, count)
            for labels, channel in peers
            for code, count in sorted(channel.committed_codes.items())
        ],
    )
    yield Metric(
        "ledger_block_processing_time",
        "summary",
        "Seconds from a block's arrival until it is committed.",
        tuple(
            (suffix, labels, value)
            for labels, channel in peers
            for suffix, value in (
                ("_sum", channel.commit_seconds),
                ("_count", channel.committed_blocks),
            )
        ),
    )
    yield _by_channel(
        "gridledger_orderer_connected",
        "gauge",
        "Whether blocks come from an orderer at the moment: 1 or 0.",
        [(labels, int(channel.orderer_connected)) for labels, channel in peers],
    )


def _orderer_metrics(orderers: list[tuple[str, Orderer]]) -> Iterator[Metric]:
    chains = [
        ({"node": node, "channel": name}, chain)
        for node, orderer in orderers
        for name, chain in sorted(orderer.channels.items())
        if isinstance(chain, Chain)
    ]
    of_chain: tuple[tuple[str, str, str, Callable[[Chain], float]], ...] = (
        (
            "consensus_etcdraft_cluster_size",
            "gauge",
            "Orderers of the channel.",
            lambda chain: len(chain.consenters()),
        ),
        (
            "consensus_etcdraft_is_leader",
            "gauge",
            "1 where this orderer leads the channel, else 0.",
            lambda chain: int(chain.is_leader),
        ),
        (
            "consensus_etcdraft_leader_changes",
            "counter",
            "Times that a leader was newly seen since the start.",
            lambda chain: chain.counters.elections,
        ),
        (
            "consensus_etcdraft_committed_block_number",
            "gauge",
            "Number of the newest block.",
            lambda chain: chain.height - 1,
        ),
        (
            "gridledger_ordered_transactions",
            "counter",
            "Transactions in the blocks that were written since the start.",
            lambda chain: chain.counters.envelopes,
        ),
        (
            "gridledger_broadcast_refused",
            "counter",
            "Envelopes that were not ordered.",
            lambda chain: chain.counters.refused,
        ),
        (
            "gridledger_raft_messages_dropped",
            "counter",
            "Messages to other orderers that found no place.",
            lambda chain: chain.counters.dropped_messages,
        ),
    )
    for name, kind, text, value in of_chain:
        yield _by_channel(name, kind, text, [(labels, value(chain)) for labels, chain in chains])
    infos = [
        ({"node": node, "channel": info.name}, info)
        for node, orderer in orderers
        for info in orderer.channel_infos()
    ]
    yield _by_channel(
        "participation_consensus_relation",
        "gauge",
        "The orderer in the channel: 0 other, 1 consenter, 2 follower, 3 config-tracker.",
        [(labels, RELATIONS.index(info.consensus_relation)) for labels, info in infos],
    )
    yield _by_channel(
        "participation_status",
        "gauge",
        "The channel on the orderer: 0 inactive, 1 active, 2 onboarding, 3 failed.",
        [(labels, STATUSES.index(info.status)) for labels, info in infos],
    )


def _plain(name: str, kind: str, text: str, value: float) -> Metric:
    return Metric(name, kind, text, (("", {}, value),))


def _by_channel(name: str, kind: str, text: str, values: Iterable[tuple[Labels, float]]) -> Metric:
    return Metric(name, kind, text, tuple(("", labels, value) for labels, value in values))


def _code_name(code: int) -> str:
    known = code in peer_pb2.TxValidationCode.values()
    return peer_pb2.TxValidationCode.Name(code) if known else str(code)
