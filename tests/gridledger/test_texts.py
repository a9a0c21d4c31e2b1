"""What a person reads, and what Home Assistant's validators ask of files."""

import ast
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from homeassistant.helpers import service
from homeassistant.util.yaml import load_yaml_dict

from custom_components.gridledger.const import DOMAIN, PERMIT_STATES
from custom_components.gridledger.figures_sensor import FIGURES
from custom_components.gridledger.sensor import HOME_SENSORS, LEDGER_SENSORS

ROOT = Path(__file__).parents[2]
HERE = ROOT / "custom_components" / DOMAIN
LANGUAGES = ("en", "it", "pt-BR", "de", "hi")
SOURCES = sorted(HERE.glob("*.py"))
MODULES = {path.name: path.read_text() for path in sorted((HERE / "frontend").glob("*.js"))}


def read(path: str) -> Any:
    return json.loads((HERE / path).read_text())


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    if isinstance(tree, str):
        return {path: tree}
    return {k: v for key, sub in tree.items() for k, v in leaves(sub, (*path, key)).items()}


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(language: str) -> None:
    base, other = leaves(read("strings.json")), leaves(read(f"translations/{language}.json"))
    assert base.keys() == other.keys()
    for path, text in base.items():
        assert other[path].strip(), path
        assert placeholders(text) == placeholders(other[path]), path


def constants(*names: str) -> set[str]:
    """The strings given to a keyword, or as the first argument of a helper, anywhere."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            values = [k.value for k in node.keywords if k.arg in names]
            if called in names and node.args:
                values.append(node.args[0])
            found |= {v.value for v in values if isinstance(v, ast.Constant)}
    return found


def test_every_error_has_a_text_and_every_text_its_error() -> None:
    strings = read("strings.json")
    raised = constants("invalid", "_failed")
    for path in SOURCES:
        raised |= set(re.findall(r'translation_key="(secrets_missing|unusable)"', path.read_text()))
    assert raised == set(strings["exceptions"])
    issues = set(
        re.findall(
            r'translation_key="(\w+)",\n\s+translation_placeholders',
            "".join(
                path.read_text()
                for path in SOURCES
                if path.name in ("coordinator.py", "renewal.py", "session.py")
            ),
        )
    )
    issues |= {"clock_ahead", "clock_behind"}
    issues |= {f"permit_{state}" for state in PERMIT_STATES if state != "granted"}
    assert issues == set(strings["issues"])


def test_every_form_field_has_name_and_help() -> None:
    strings = read("strings.json")
    for flow in ("config", "options"):
        for name, step in strings[flow]["step"].items():
            for form in (step, *step.get("sections", {}).values()):
                assert form.get("data", {}).keys() == form.get("data_description", {}).keys(), name


def test_every_entity_has_name_and_icon() -> None:
    names, icons = read("strings.json")["entity"], read("icons.json")["entity"]
    described = (*HOME_SENSORS, *LEDGER_SENSORS, *FIGURES)
    keys = {description.translation_key for description in described}
    assert set(names["sensor"]) == set(icons["sensor"]) >= keys
    assert names.keys() == icons.keys()
    for platform in names.keys() - {"sensor"}:
        assert names[platform].keys() == icons[platform].keys()


def test_actions_are_described_and_their_description_is_valid() -> None:
    described = load_yaml_dict(str(HERE / "services.yaml"))
    service._SERVICES_SCHEMA(described)
    texts = read("strings.json")["services"]
    assert described.keys() == texts.keys() == read("icons.json")["services"].keys()
    for name, action in described.items():
        assert action["fields"].keys() == texts[name]["fields"].keys()


def test_choices_of_actions_have_names() -> None:
    names = read("strings.json")["selector"]
    for action in load_yaml_dict(str(HERE / "services.yaml")).values():
        for field in action["fields"].values():
            chosen = field["selector"].get("select") or {}
            if "translation_key" in chosen:
                known = names[chosen["translation_key"]]["options"]
                assert known.keys() == set(chosen["options"])


@pytest.mark.parametrize("kind", ["triggers", "conditions"])
def test_triggers_and_conditions_are_described(kind: str) -> None:
    from homeassistant.helpers import condition, trigger

    from custom_components.gridledger.condition import CONDITIONS
    from custom_components.gridledger.trigger import TRIGGERS

    described = load_yaml_dict(str(HERE / f"{kind}.yaml"))
    if kind == "triggers":
        # In 2026.6 the schemas of triggers stand in the module itself.
        descriptions = getattr(trigger, "descriptions", trigger)
        descriptions._TRIGGERS_DESCRIPTION_SCHEMA(described)
        known: Any = TRIGGERS
    else:
        condition._CONDITIONS_DESCRIPTION_SCHEMA(described)
        known = CONDITIONS
    texts = read("strings.json")[kind]
    assert described.keys() == known.keys() == texts.keys() == read("icons.json")[kind].keys()
    for name, one in described.items():
        assert one["fields"].keys() == texts[name]["fields"].keys()  # empty: never in the editor


def test_actions_take_what_they_describe() -> None:
    from custom_components.gridledger.services import _WISH

    described = load_yaml_dict(str(HERE / "services.yaml"))
    assert {str(key) for key in _WISH} | {"energy"} == set(described["quote_sale"]["fields"])


def test_cards_use_texts_that_exist() -> None:
    texts = read("strings.json")["common"]
    for name, module in MODULES.items():
        used = set(re.findall(r'\bt\(\s*"(\w+)"', module))
        assert used <= set(texts), name
        assert len(module.encode()) <= 60_000
        known = module.replace("http://www.w3.org", "").replace("https://github.com", "")
        assert "http" not in known


def test_manifest() -> None:
    manifest = read("manifest.json")
    keys = list(manifest)
    assert keys == ["domain", "name", *sorted(keys[2:])]
    assert {"version", "iot_class", "codeowners", "documentation", "issue_tracker"} <= set(keys)
    assert manifest["requirements"] == ["grpcio>=1.75.1,<2", "protobuf>=6.31.1,<8"]


def test_hacs() -> None:
    hacs = json.loads((ROOT / "hacs.json").read_text())
    assert set(hacs) <= {"name", "content_in_root", "homeassistant", "render_readme"}
    assert hacs["name"] == "GridLedger"


@pytest.mark.parametrize(("name", "size"), [("icon.png", 256), ("icon@2x.png", 512)])
def test_brand(name: str, size: int) -> None:
    header = (HERE / "brand" / name).read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (size, size)


def imports(path: Path) -> set[str]:
    """Modules that a file imports as soon as it is imported itself."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found |= {base} | {base + alias.name for alias in node.names}
    return found


def test_start_imports_nothing_that_needs_installing() -> None:
    """Home Assistant imports the package before it installs requirements."""
    todo, seen = ["__init__", "trigger", "condition"], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for module in imports(HERE / f"{name}.py"):
            assert not module.startswith(("grpc", "google", ".client")), f"{name} imports {module}"
            local = module.lstrip(".")
            if module.startswith(".") and (HERE / f"{local}.py").exists() and local not in seen:
                todo.append(local)
    assert {"services", "websocket", "dashboard", "vault"} <= seen


def test_client_knows_nothing_of_home_assistant() -> None:
    for path in (HERE / "client").glob("*.py"):
        assert not any(name.startswith("homeassistant") for name in imports(path)), path
        assert "from .." not in path.read_text(), path
