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
FILES = sorted(path for path in CONTRACTS.rglob("*.py") if path.name != "package.py")
FORBIDDEN_CALLS = {
    "breakpoint", "compile", "eval", "exec", "float", "frozenset", "hash", "id", "input", "open",
    "print", "round", "set", "vars", "__import__",
}  # fmt: skip
PURE_MODULES = {"bisect", "dataclasses", "typing", "collections.abc"}


API = CONTRACTS.parent / "chaincode" / "api.py"
MODULES_THAT_DIFFER = {
    "asyncio", "datetime", "locale", "multiprocessing", "os", "pathlib", "platform", "random",
    "secrets", "select", "socket", "subprocess", "sys", "tempfile", "threading", "time", "uuid",
    "zoneinfo",
}  # fmt: skip


def offences(source: str) -> list[str]:
    """What in a contract's source may come out differently on another peer, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        problem = _offence(node)
        if problem:
            found.append(f"{getattr(node, 'lineno', 0)} {problem}")
    return found


def _narrows(test: ast.expr) -> bool:
    """Whether a check is for readers and the type checker: without it the next line fails."""
    match test:
        case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
        case ast.Call(func=ast.Name(id="isinstance")):
            return True
    return False


def _offence(node: ast.AST) -> str:
    match node:
        case ast.Import(names=[name, *_]):
            return f"imports {name.name}"
        case ast.ImportFrom(level=0, module=module):
            allowed = {*PURE_MODULES, "consortium.chaincode.api"}
            return "" if module in allowed else f"imports {module}"
        case ast.ImportFrom(level=level) if level > 2:
            return "imports what lies outside the contracts"
        case ast.Constant(value=float() | complex()):
            return "has a float"
        case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
            return "divides into a float; use //"
        case ast.BinOp(op=ast.Pow(), right=right) if not isinstance(right, ast.Constant):
            return "may come to a float by a negative exponent"
        case ast.Set() | ast.SetComp():
            return "has a set, whose order is no order"
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr() | ast.BitXor() | ast.Sub(), left=left) if (
            _is_view(left) or _is_view(node.right)
        ):
            return "makes a set of keys, whose order is no order"
        case ast.Assert(test=test) if not _narrows(test):
            return "asserts what python -O would no longer check; use ensure"
        case ast.Global() | ast.Nonlocal() | ast.Await() | ast.AsyncFunctionDef():
            return "keeps something between calls, or waits"
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
            return f"calls {name}"
        case ast.Name(id=name, ctx=ast.Load()) if name in FORBIDDEN_CALLS - {"vars", "id"}:
            return f"uses {name}"
        case ast.Attribute(attr=name) if name.startswith("__"):
            return f"reaches for {name}"
        case ast.JoinedStr(values=values) if any(
            isinstance(one, ast.FormattedValue) and _localized(one) for one in values
        ):
            return "formats a number as its locale does"
    return ""


def _is_view(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="keys" | "items")):
            return True
    return False


def _localized(node: ast.FormattedValue) -> bool:
    match node.format_spec:
        case ast.JoinedStr(values=[ast.Constant(value=str(text))]):
            return text.endswith("n")
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONTRACTS)))
def test_contracts_use_nothing_that_differs_between_peers(path: Path) -> None:
    assert not [f"{path.name}:{one}" for one in offences(path.read_text())]


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "assert total == 0, 'postings must sum to zero'",
        "from random import choice",
        "from consortium.chaincode.executor import OK",
        "from ...chaincode.executor import OK",
        "x = 1.5",
        "x = a / b",
        "x /= 2",
        "x = 2 ** y",
        "for x in {1, 2}: pass",
        "x = {y for y in z}",
        "x = set(y)",
        "x = sorted(y, key=hash)",
        "x = a.keys() & b",
        "x = a - b.keys()",
        "x = hash(y)",
        "x = id(y)",
        "x = open('f')",
        "x = y.__dict__",
        "x = f'{y:n}'",
        "async def f(): pass",
        "def f():\n    global x",
    ],
)
def test_the_check_itself(source: str) -> None:
    assert offences(source)


def test_the_contract_api_reads_no_clock_and_no_surroundings() -> None:
    imported = set()
    for node in ast.walk(ast.parse(API.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert not imported & MODULES_THAT_DIFFER


def test_a_package_is_named_by_all_its_sources() -> None:
    covered = {source for name in chaincodes() for source in sources(name)}
    files = {path.relative_to(CONTRACTS).as_posix() for path in FILES}
    assert files - {"__init__.py"} <= covered
    assert package_id("energy").startswith("energy_1.0:")
    assert len(package_id("metering")) == len("metering_1.0:") + 64
    assert package_id("metering") != package_id("energy")


def test_hash_seed_locale_and_time_zones_make_no_difference(tmp_path: Path) -> None:
    """Two endorsers' read and write sets of sales, a settled day and a bill are the same bytes."""
    answers = {
        subprocess.run(
            [sys.executable, "-m", "tests.consortium.contracts.deterministic"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "LC_ALL": locale,
                "TZ": zone,
                "PYTHONTZPATH": tzdata,
                "TZDIR": tzdata,
            },
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, locale, zone, tzdata in (
            ("0", "C", "UTC", "/usr/share/zoneinfo"),
            ("4242", "de_DE.UTF-8", "Asia/Kathmandu", str(tmp_path)),  # no time zones at all
        )
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
