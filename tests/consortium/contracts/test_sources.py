"""Contract code keeps to what every peer computes alike, and is named by its sources."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import consortium.contracts
from consortium.contracts import chaincodes
from consortium.contracts.package import package_id, sources

ROOT = Path(__file__).resolve().parents[3]
CONTRACTS = Path(consortium.contracts.__file__).parent
FILES = sorted(path for path in CONTRACTS.glob("*.py") if path.name != "package.py")
FORBIDDEN_CALLS = {
    "breakpoint", "compile", "eval", "exec", "float", "frozenset", "hash", "id", "input", "open",
    "print", "round", "set", "vars", "__import__",
}  # fmt: skip
PURE_MODULES = {"bisect", "dataclasses", "typing", "collections.abc"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_contracts_use_nothing_that_differs_between_peers(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            raise AssertionError(f"{where} imports {node.names[0].name}")
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            allowed = {*PURE_MODULES, "consortium.chaincode.api"}
            assert node.module in allowed, f"{where} imports {node.module}"
        if isinstance(node, ast.Constant):
            assert not isinstance(node.value, (float, complex)), f"{where} has a float"
        if isinstance(node, ast.BinOp):
            assert not isinstance(node.op, ast.Div), f"{where} divides into a float; use //"
            assert not isinstance(node.op, ast.Pow) or isinstance(node.right, ast.Constant), where
        assert not isinstance(node, (ast.Set, ast.SetComp)), f"{where} has a set"
        assert not isinstance(node, (ast.Global, ast.Nonlocal, ast.Await)), where
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{where} calls {node.func.id}"


def test_a_package_is_named_by_all_its_sources() -> None:
    covered = {source for name in chaincodes() for source in sources(name)}
    assert {path.name for path in FILES} - {"__init__.py"} <= covered
    assert package_id("energy").startswith("energy_1.0:")
    assert len(package_id("metering")) == len("metering_1.0:") + 64
    assert package_id("metering") != package_id("energy")


SCENARIO = """
import hashlib
from tests.consortium.contracts.world import *
world = energy_world(replay={"anchor": 0, "origin": 0, "rate": 1})
for supplier, caller in (("AuroraMSP", SUPPLIER), ("BorealMSP", BOREAL_SUPPLIER)):
    world.submit(caller, "market:PublishRate", supplier=supplier, day="2026-11-21", kind="buy",
                 price_micro_per_kwh=81_000)
digest = hashlib.sha256()
quoted = world.simulate(HOME, "market:Quote", {"connection_id": "CP-0001", "energy_wh": 8000,
                        "window_start": NOON + 3600, "window_end": NOON + 7200 + 3600})
digest.update(quoted.results.rwset)
sold = world.simulate(HOME, "market:Authorise", {"request_id": "r", **quoted.value})
digest.update(sold.results.rwset)
for key, value in sorted(world.state.values().items()):
    digest.update(repr((key, value)).encode())
print(digest.hexdigest())
"""


def test_hash_seed_and_locale_make_no_difference() -> None:
    answers = {
        subprocess.run(
            [sys.executable, "-c", SCENARIO],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, locale, zone in (("0", "C", "UTC"), ("4242", "de_DE.UTF-8", "Asia/Kathmandu"))
    }
    assert len(answers) == 1
    assert len(answers.pop().strip()) == 64


def test_every_function_and_field_is_documented() -> None:
    page = (ROOT / "docs/contracts.md").read_text()
    sections = {
        section.partition("\n")[0]: section for section in re.split(r"^### ", page, flags=re.M)[1:]
    }
    functions = {
        name: function
        for chaincode in chaincodes().values()
        for name, function in chaincode.functions.items()
    }
    assert set(sections) == set(functions)
    for name, function in functions.items():
        section = sections[name]
        for field in function.fields:
            assert f"`{field}`" in section, f"{name} has a field {field}"
        assert ("*Query" in section) != function.writes, name
        assert "Caller" in section, name
    for example in re.findall(r"^```json\n(.*?)^```", page, flags=re.M | re.S):
        json.loads(example)
