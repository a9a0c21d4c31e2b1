"""Sends spoiled requests to a running network and looks at what that does to it.

After every batch: each request got a status, no node has logged an exception that nobody caught,
every process is alive and within its memory. What fails is saved, and can be sent again.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import re
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
from hypothesis import HealthCheck, Phase, given, seed, settings

from consortium.node.contracts import client as utility_client
from consortium.node.contracts import ensure_contracts
from consortium.node.network import Network, Utility, create_network
from consortium.node.processes import ProcessNetwork
from gridledger_client import GatewayClient
from tests.ports import first_port

from .messages import messages
from .mutation import mutated
from .parsers import Parser, parsers
from .parsers import words as parser_words
from .targets import Layer, Target, World, targets

AT_ONCE = 8
ANSWER_S = 20.0
"""Time for an answer where one is due."""
WAIT_S = 0.3
"""Time given to what may be waiting rightly."""
MEMORY_GROWTH = 400 * 1024 * 1024
"""Bytes that all processes together may grow by in a run; buffers and caches fill up at first."""
LONGEST_SENTENCE = 4_000
SAVED = Path(".fuzz")
_TRACES = re.compile(
    r"^Traceback \(most recent call last\)|Exception ignored in|Fatal Python error"
    r"|was never retrieved|was never awaited|Segmentation fault|^E\d{4} .* ASSERTION",
    re.MULTILINE,
)


class Fault(AssertionError):
    """Something that no input may bring about."""


@dataclass(frozen=True)
class Case:
    """One input."""

    target: str
    layer: str
    raw: bytes

    def save(self, problem: str, folder: Path) -> Path:
        """Write it down for `--replay`."""
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(self.raw).hexdigest()[:12]
        path = folder / f"{self.target}-{digest}.json"
        path.write_text(
            json.dumps(
                {
                    "target": self.target,
                    "layer": self.layer,
                    "problem": problem[:4000],
                    "raw": base64.b64encode(self.raw).decode(),
                },
                indent=1,
            )
        )
        return path

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read what `save` wrote."""
        saved = json.loads(path.read_text())
        return cls(saved["target"], saved["layer"], base64.b64decode(saved["raw"]))


@dataclass
class Watched:
    """The processes of a network, and what they write to their logs."""

    logs: Sequence[Path]
    pids: Sequence[int]
    _read: dict[Path, int] = field(default_factory=dict)
    _memory: int = 0

    def __post_init__(self) -> None:
        for log in self.logs:
            self._read[log] = log.stat().st_size
        self._memory = self.memory()

    def memory(self) -> int:
        """Resident bytes of all processes; raises Fault when one is gone."""
        total = 0
        for pid in self.pids:
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except FileNotFoundError:
                raise Fault(f"the node's process {pid} has ended") from None
            if "\nState:\tZ" in text or "VmRSS" not in text:
                raise Fault(f"the node's process {pid} has ended")
            total += int(text.split("VmRSS:")[1].split()[0]) * 1024
        return total

    @property
    def grown(self) -> int:
        """By how many bytes, since the beginning."""
        return self.memory() - self._memory

    def check(self) -> None:
        """Raises Fault for an exception in a log, an ended process, or too much memory."""
        for log in self.logs:
            with log.open("rb") as file:
                file.seek(self._read[log])
                new = file.read()
            self._read[log] += len(new)
            text = new.decode(errors="replace")
            if found := _TRACES.search(text):
                start = max(0, found.start() - 300)
                raise Fault(f"{log.name}: {text[start : found.start() + 3500]}")
        if self.grown > MEMORY_GROWTH:
            raise Fault(f"the nodes have grown by {self.grown >> 20} MiB")


def outcome(code: grpc.StatusCode, message: str) -> str:
    """The status as text; raises Fault for one that no service gives of its own accord."""
    if code is grpc.StatusCode.INTERNAL or "Unexpected <" in message:
        raise Fault(f"{code.name}: {message}")
    if code is grpc.StatusCode.UNKNOWN and not message:
        raise Fault("UNKNOWN without a sentence")
    if len(message) > LONGEST_SENTENCE:
        raise Fault(f"{code.name} says back {len(message)} characters: {message[:300]}")
    return code.name


class Caller:
    """Connections to a network's nodes, over which bytes go as they are."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._channels: dict[tuple[str, bool], grpc.aio.Channel] = {}
        self._session: aiohttp.ClientSession | None = None

    def _channel(self, address: str, node: Utility | None) -> grpc.aio.Channel:
        key = (address, node is not None)
        if key not in self._channels:
            folder = node.directory / "orderer" if node else None
            self._channels[key] = grpc.aio.secure_channel(
                address,
                grpc.ssl_channel_credentials(
                    self._network.tls_bundle_pem,
                    (folder / "tls.key.pem").read_bytes() if folder else None,
                    (folder / "tls.cert.pem").read_bytes() if folder else None,
                ),
                options=(
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.max_send_message_length", -1),
                ),
            )
        return self._channels[key]

    async def close(self) -> None:
        """Hang up."""
        for channel in self._channels.values():
            await channel.close()
        if self._session:
            await self._session.close()

    async def send(self, target: Target, raw: bytes) -> str:
        """The answer's status, or "waits"; raises Fault for no answer, or an answer like none."""
        if target.shape == "rest":
            return await self._rest(target, raw)
        limit = WAIT_S if target.waits else ANSWER_S
        try:
            async with asyncio.timeout(limit):
                return await self._grpc(target, raw)
        except TimeoutError:
            if target.waits:
                return "waits"
            raise Fault(f"no answer within {limit:g} s") from None
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and not target.may_be_absent:
                raise Fault(f"{target.path} is not there") from None
            return outcome(error.code(), error.details() or "")

    async def _grpc(self, target: Target, raw: bytes) -> str:
        channel = self._channel(target.address, target.node)
        if target.shape == "unary":
            await channel.unary_unary(target.path)(raw)
            return "OK"
        call: grpc.aio.Call
        if target.shape == "events":
            one = channel.unary_stream(target.path)(raw)
            call = one
            read = one.read
        else:
            many = channel.stream_stream(target.path)()
            call = many
            read = many.read
            with contextlib.suppress(asyncio.InvalidStateError):
                await many.write(raw)
                await many.done_writing()
        try:
            answer = await read()
            if answer is grpc.aio.EOF:
                return outcome(await call.code(), await call.details() or "")
            return "OK"
        finally:
            call.cancel()

    async def _rest(self, target: Target, raw: bytes) -> str:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        trust = ssl.create_default_context(cadata=self._network.tls_bundle_pem.decode())
        if target.admin:
            folder = target.admin.directory / "admin"
            trust.load_cert_chain(folder / "sign.cert.pem", folder / "sign.key.pem")
        request = json.loads(raw)
        # What aiohttp itself would refuse to send never reaches the node.
        headers = {
            name: re.sub(r"[\x00-\x1f\x7f]", "", value)
            for name, value in (
                ("Authorization", request["authorization"]),
                ("Content-Type", request.get("content_type", "")),
            )
            if value
        }
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                self._session.request(
                    target.method,
                    target.address + (target.url or target.path),
                    data=base64.b64decode(request["body"]),
                    headers=headers,
                    ssl=trust,
                    allow_redirects=False,
                ) as answer,
            ):
                text = await answer.text()
        except TimeoutError:
            raise Fault(f"no answer within {ANSWER_S:g} s") from None
        except aiohttp.ClientError as error:
            return type(error).__name__  # a header that HTTP itself forbids
        if answer.status >= 500 and answer.status != 503:
            raise Fault(f"{answer.status}: {text[:500]}")
        if len(text) > LONGEST_SENTENCE and answer.status >= 400:
            raise Fault(f"{answer.status} says back {len(text)} characters: {text[:300]}")
        return str(answer.status)


@dataclass
class Fuzzing:
    """One run against one network."""

    world: World
    watched: Watched
    targets: dict[str, Target]
    caller: Caller
    folder: Path = SAVED
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def run(self, cases: Sequence[Case]) -> None:
        """Send them, a few at once; raises Fault, after saving what brought it about."""
        for start in range(0, len(cases), AT_ONCE):
            batch = cases[start : start + AT_ONCE]
            results = await asyncio.gather(
                *(self._one(case) for case in batch), return_exceptions=True
            )
            problems = [one for one in results if isinstance(one, BaseException)]
            try:
                self.watched.check()
            except Fault as fault:
                raise await self._blame(batch, fault) from None
            for case, problem in zip(batch, results, strict=True):
                if isinstance(problem, Fault):
                    saved = case.save(str(problem), self.folder)
                    raise Fault(f"{case.target} ({case.layer}): {problem}\nsaved as {saved}")
            if problems:
                raise problems[0]

    async def _one(self, case: Case) -> None:
        status = await self.caller.send(self.targets[case.target], case.raw)
        self.statuses[case.target, status] += 1

    async def _blame(self, batch: Sequence[Case], fault: Fault) -> Fault:
        """The fault with the input that brings it about again, if one of them does alone."""
        for case in batch:
            with contextlib.suppress(Fault):
                await self._one(case)
            await asyncio.sleep(0.1)
            try:
                self.watched.check()
            except Fault as again:
                saved = case.save(str(again), self.folder)
                return Fault(f"{case.target} ({case.layer}): {again}\nsaved as {saved}")
        saved_all = [str(case.save(str(fault), self.folder)) for case in batch]
        return Fault(f"{fault}\none of, or together: {', '.join(saved_all)}")

    async def still_commits(self) -> None:
        """An honest transaction goes through, and every peer has it."""
        committed = await self.world.client.submit(
            "energy",
            "wallet:Deposit",
            {
                "account": "SUPPLIER-AURORA",
                "amount_micro": "1",
                "bank_reference": f"AFTER-{os.urandom(8).hex().upper()}",
            },
        )
        for utility in self.world.network.utilities:
            async with utility_client(self.world.network, utility, "operator") as client:
                status = await client.commit_status(committed.transaction_id)
                assert status.valid, (utility.name, status)


@asynccontextmanager
async def fuzzing(
    network: Network,
    client: GatewayClient,
    logs: Sequence[Path],
    pids: Sequence[int],
    folder: Path = SAVED,
) -> AsyncIterator[Fuzzing]:
    """Get ready to send to a running network."""
    world = World(network, client)
    caller = Caller(network)
    try:
        yield Fuzzing(world, Watched(logs, pids), await targets(world), caller, folder)
    finally:
        await caller.close()


# -- cases -------------------------------------------------------------------------------------


def mutations(target: Target, chance: random.Random, count: int) -> Iterator[Case]:
    """Honest requests with something wrong in them."""
    for _ in range(count):
        layer = chance.choice(target.layers)
        yield Case(target.name, layer.name, layer.rebuild(mutated(layer.inner, chance)))


def inventions(target: Target, world: World, seed_number: int, count: int) -> list[Case]:
    """Requests made from the descriptors."""
    layers = [layer for layer in target.layers if layer.kind is not None]
    cases: list[Case] = []
    # One of each name: strategies are the same for all of them.
    for layer in {layer.name: layer for layer in layers}.values():
        share = -(-count // len({layer.name for layer in layers}))
        cases += _invented(target, layer, world, seed_number, share)
    return cases


def _invented(
    target: Target, layer: Layer, world: World, seed_number: int, count: int
) -> list[Case]:
    assert layer.kind is not None
    return [
        Case(target.name, layer.name, layer.rebuild(raw))
        for raw in drawn(layer.kind, world.words(), seed_number, count)
    ]


def drawn(kind, words, seed_number: int, count: int) -> list[bytes]:  # type: ignore[no-untyped-def]
    """`count` messages from a strategy, the same ones for the same seed."""
    found: list[bytes] = []

    @seed(seed_number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(messages(kind, words))
    def collect(raw: bytes) -> None:
        found.append(raw)

    collect()
    return found


def try_parser(parser: Parser, chance: random.Random, count: int, folder: Path = SAVED) -> None:
    """Honest bytes, puzzles, mutations and inventions; raises Fault after saving what failed."""

    def check(raw: bytes, how: str) -> None:
        try:
            parser.check(raw)
        except AssertionError as error:
            saved = Case(f"parser:{parser.name}", how, raw).save(str(error), folder)
            raise Fault(f"{error}\nsaved as {saved}") from error

    for raw in (*parser.seeds, *parser.puzzles):
        check(raw, "seed")
    for _ in range(count):
        check(mutated(chance.choice(parser.seeds), chance), "mutation")
    if parser.message is not None:
        for raw in drawn(parser.message, parser_words(), chance.getrandbits(32), count // 4 + 1):
            check(raw, "invention")


# -- the command -------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/fuzz",
        description="Send spoiled input to every service of a network of its own, and to every "
        "parser, until the time is up. What fails is saved in .fuzz/ and can be replayed.",
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")
    parser.add_argument(
        "--service", action="append", help="one service or parser:NAME; may be given again"
    )
    parser.add_argument("--seed", type=int, help="the same inputs again (default: from the clock)")
    parser.add_argument("--replay", type=Path, action="append", help="a saved input")
    parser.add_argument("--list", action="store_true", help="name all services and parsers")
    return parser.parse_args()


def main() -> int:
    """Run it; 1 if something failed."""
    options = _arguments()
    try:
        asyncio.run(_main(options))
    except Fault as fault:
        print(f"fuzz: {fault}", file=sys.stderr)
        return 1
    return 0


async def _main(options: argparse.Namespace) -> None:
    seed_number = int(time.time()) if options.seed is None else options.seed
    chance = random.Random(seed_number)
    known = parsers()
    wanted = options.service or []
    cases = [Case.load(path) for path in options.replay or ()]
    for case in cases:
        if case.target.startswith("parser:"):
            known[case.target.removeprefix("parser:")].check(case.raw)
            print(f"{case.target}: passes")
    cases = [case for case in cases if not case.target.startswith("parser:")]
    if options.replay and not cases:
        return
    deadline = time.monotonic() + options.seconds
    only_parsers = wanted and all(name.startswith("parser:") for name in wanted)
    if only_parsers:
        await asyncio.to_thread(_parse_until, deadline, known, wanted, chance)
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-network-") as name:
        network = create_network(Path(name) / "data", interval_s=60, base_port=first_port())
        processes = ProcessNetwork(network, log_dir=Path(name))
        await processes.start()
        try:
            await ensure_contracts(network)
            pids = [one.pid for one in processes.processes.values()]
            logs = sorted(Path(name).glob("*.log"))
            async with (
                utility_client(network, network.utilities[0], "operator") as client,
                fuzzing(network, client, logs, pids) as run,
            ):
                if options.list:
                    print(*run.targets, *(f"parser:{one}" for one in known), sep="\n")
                    return
                if cases:
                    await run.run(cases)
                    print(f"{len(cases)} saved inputs pass")
                    return
                unknown = [
                    one
                    for one in wanted
                    if one not in run.targets and one.removeprefix("parser:") not in known
                ]
                if unknown:
                    raise Fault(f"there is no service {', '.join(unknown)}; see --list")
                print(f"fuzz: seed {seed_number}", file=sys.stderr)
                await _run_until(deadline, run, known, wanted, chance)
        finally:
            await processes.stop()


async def _run_until(
    deadline: float,
    run: Fuzzing,
    known: dict[str, Parser],
    wanted: Sequence[str],
    chance: random.Random,
) -> None:
    chosen = [one for one in run.targets.values() if not wanted or one.name in wanted]
    rounds = 0
    while True:
        for target in chosen:
            await run.run(list(mutations(target, chance, 40)))
            invented = await asyncio.to_thread(
                inventions, target, run.world, chance.getrandbits(32), 10
            )
            await run.run(invented)
            if time.monotonic() > deadline:
                break
        await asyncio.to_thread(_parse_until, 0, known, wanted, chance)
        await run.still_commits()
        run.watched.check()
        rounds += 1
        sent = run.statuses.total()
        print(
            f"fuzz: round {rounds}, {sent} requests, nodes grew by {run.watched.grown >> 20} MiB",
            file=sys.stderr,
        )
        if time.monotonic() > deadline:
            break
    by_status = Counter[str]()
    for (_, status), count in run.statuses.items():
        by_status[status] += count
    print(", ".join(f"{count} {status}" for status, count in by_status.most_common()))


def _parse_until(
    deadline: float, known: dict[str, Parser], wanted: Sequence[str], chance: random.Random
) -> None:
    """Once through the parsers that are wanted, and again until the time is up."""
    while True:
        for name, parser in known.items():
            if not wanted or f"parser:{name}" in wanted:
                try_parser(parser, chance, 40)
        if time.monotonic() > deadline:
            return


if __name__ == "__main__":
    raise SystemExit(main())
