"""Home Assistant's Integration Quality Scale: each rule with a check, or the tests that show it.

What sources and files can show is looked up in them; what only behaviour shows names the tests of
it, which have to be there. The rules of the documentation name the headings that fulfil them.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from custom_components.gridledger.const import PLATFORMS
from custom_components.gridledger.figures import EVERY
from custom_components.gridledger.keeper_sensor import KEEPER_SENSORS, RUN_TIME
from custom_components.gridledger.sensor import HOME_SENSORS, LEDGER_SENSORS

ROOT = Path(__file__).parents[2]
HERE = ROOT / "custom_components" / "gridledger"
TREES = {path.stem: ast.parse(path.read_text()) for path in sorted(HERE.glob("*.py"))}
RULES = yaml.safe_load((HERE / "quality_scale.yaml").read_text())["rules"]
MANIFEST = json.loads((HERE / "manifest.json").read_text())
STRINGS = json.loads((HERE / "strings.json").read_text())
KINDS = ("BinarySensor", "Calendar", "Event", "Select", "Sensor", "Switch")
ENTITIES = (
    *("binary_sensor", "calendar", "event", "figures_sensor", "keeper_sensor"),
    *("select", "sensor", "switch"),
)


def functions(module: str) -> set[str]:
    return {
        node.name
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                yield called.attr, node
            elif isinstance(called, ast.Name):
                yield called.id, node


def keywords(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg}


def inside(module: str, function: str) -> str:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function:
            return ast.unparse(node)
    raise AssertionError(f"{module}.py has no {function}")


def action_setup() -> None:
    assert "async_setup_services(hass)" in inside("__init__", "async_setup")
    assert "async_register" not in inside("__init__", "async_setup_entry")


def appropriate_polling() -> None:
    assert MANIFEST["iot_class"] == "cloud_push"
    polls = [m for m in TREES for name, call in calls(m) if "update_interval" in keywords(call)]
    assert polls == ["figures"], "asked for only while its sensors are enabled"
    assert EVERY.total_seconds() >= 900


def brands() -> None:
    assert {path.name for path in (HERE / "brand").iterdir()} >= {"icon.png", "icon@2x.png"}


def common_modules() -> None:
    assert {"coordinator", "entity"} <= TREES.keys()


def config_flow() -> None:
    assert MANIFEST["config_flow"] is True
    for step in STRINGS["config"]["step"].values():
        assert step.get("data", {}).keys() == step.get("data_description", {}).keys()


def dependency_transparency() -> None:
    # From PyPI, built in public, in ranges; the client is in this repository.
    assert MANIFEST["requirements"] == ["grpcio>=1.75.1,<2", "protobuf>=6.31.1,<8"]


def entity_event_setup() -> None:
    for module in ENTITIES:
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                begun = re.findall(
                    r"async_(?:track|listen|add_listener|dispatch)", ast.unparse(node)
                )
                assert not begun, module


def entity_unique_id() -> None:
    assert "_attr_unique_id" in inside("entity", "__init__")
    assert "_attr_unique_id" in ast.unparse(TREES["subentry_entity"])


def has_entity_name() -> None:
    for module in ("entity", "subentry_entity"):
        assert "_attr_has_entity_name = True" in ast.unparse(TREES[module])
    # Whoever makes an entity here begins with one of those two.
    made = {"GridLedgerEntity", "SubentryEntity"}
    for module in ENTITIES:
        for node in ast.walk(TREES[module]):
            bases = {ast.unparse(base).partition("[")[0] for base in getattr(node, "bases", ())}
            if isinstance(node, ast.ClassDef) and bases & {f"{kind}Entity" for kind in KINDS}:
                assert bases & made, f"{module}.{node.name}"


def runtime_data() -> None:
    assert "entry.runtime_data = " in inside("__init__", "async_setup_entry")
    assert not [m for m, tree in TREES.items() if "hass.data[DOMAIN]" in ast.unparse(tree)]


def config_entry_unloading() -> None:
    assert "async_unload_entry" in functions("__init__")


def action_exceptions() -> None:
    for module in ("services", "keeper_services", "account_services", "actions"):
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                assert ast.unparse(node.exc.func) in {"invalid", "_failed", "translated"}, module


def integration_owner() -> None:
    assert MANIFEST["codeowners"]


def parallel_updates() -> None:
    for platform in PLATFORMS:
        assert "PARALLEL_UPDATES = 0" in ast.unparse(TREES[str(platform)])


def reauthentication_flow() -> None:
    assert "async_step_reauth" in functions("config_flow")


def reconfiguration_flow() -> None:
    assert "async_step_reconfigure" in functions("config_flow")


def discovery() -> None:
    assert MANIFEST["zeroconf"] == ["_gridledger._tcp.local."]
    assert "async_step_zeroconf" in functions("config_flow")


def devices() -> None:
    assert "DeviceInfo(" in inside("entity", "__init__")
    assert "DeviceInfo(" in ast.unparse(TREES["subentry_entity"])


def diagnostics() -> None:
    assert "async_get_config_entry_diagnostics" in functions("diagnostics")


def entity_category() -> None:
    described = "".join(ast.unparse(TREES[module]) for module in ENTITIES)
    assert described.count("entity_category=EntityCategory.DIAGNOSTIC") >= 3


def entity_device_class() -> None:
    units = {"W", "Wh", "kWh", "%", "min", "A", "V"}
    for description in (*HOME_SENSORS, *LEDGER_SENSORS, *KEEPER_SENSORS, RUN_TIME):
        if description.native_unit_of_measurement in units - {"%"}:
            assert description.device_class is not None, description.key
    for key, kind in (("battery_level", "battery"), ("balance", "monetary")):
        (found,) = [d for d in (*HOME_SENSORS, *LEDGER_SENSORS) if d.key == key]
        assert found.device_class == kind


def entity_disabled_by_default() -> None:
    described = "".join(ast.unparse(TREES[module]) for module in ENTITIES)
    assert described.count("entity_registry_enabled_default=False") >= 5


def entity_translations() -> None:
    for module in ENTITIES:
        for name, call in calls(module):
            if name.endswith("EntityDescription"):
                assert keywords(call) & {"translation_key", "device_class"}, module


def exception_translations() -> None:
    raised = {"HomeAssistantError", "ServiceValidationError"}
    for module in TREES:
        for name, call in calls(module):
            if name in raised or (
                name.startswith("ConfigEntry") and name.endswith(("Failed", "Error"))
            ):
                assert {"translation_domain", "translation_key"} <= keywords(call), module


def icon_translations() -> None:
    icons = json.loads((HERE / "icons.json").read_text())
    assert {"entity", "services", "triggers", "conditions"} <= icons.keys()
    for module in TREES:
        assert "_attr_icon" not in ast.unparse(TREES[module])
        assert not [name for name, call in calls(module) if "icon" in keywords(call)]


def repair_issues() -> None:
    made = [(m, call) for m in TREES for name, call in calls(m) if name == "async_create_issue"]
    assert len(made) >= 4
    for module, call in made:
        assert {"translation_key", "severity", "is_fixable"} <= keywords(call), module


def inject_websession() -> None:
    for module in ("config_flow", "renewal"):
        for name, call in calls(module):
            if name in {"enroll", "fetch_info", "renew"}:
                assert "session" in keywords(call), module
    assert not [m for m in TREES for name, _ in calls(m) if name == "ClientSession"]


def strict_typing() -> None:
    assert "strict = true" in (ROOT / "pyproject.toml").read_text()
    assert (HERE / "client" / "py.typed").exists()
    # Each exception from it says which, and never for a whole file.
    for path in HERE.rglob("*.py"):
        if not path.name.endswith("_pb2.py"):
            assert "# type: ignore\n" not in path.read_text(), path
            assert "# mypy: ignore-errors" not in path.read_text(), path


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        action_setup, appropriate_polling, brands, common_modules, config_flow,
        dependency_transparency, entity_event_setup, entity_unique_id, has_entity_name,
        runtime_data, config_entry_unloading, action_exceptions, integration_owner,
        parallel_updates, reauthentication_flow, reconfiguration_flow, discovery, devices,
        diagnostics, entity_category, entity_device_class, entity_disabled_by_default,
        entity_translations, exception_translations, icon_translations, repair_issues,
        inject_websession, strict_typing,
    )
}  # fmt: skip
SHOWN = {
    "action-exceptions": "test_a_sale_is_refused_in_words test_what_its_owner_allows",
    "async-dependency": "test_client_knows_nothing_of_home_assistant",
    "brands": "test_brand",
    "config-entry-unloading": "test_unload_turns_off_what_was_switched_on_and_remembers "
    "test_an_entry_that_fails_to_load_leaves_nothing_running",
    "config-flow": "test_joins_and_hides_its_keys",
    "diagnostics": "test_diagnostics_tell_no_secrets",
    "discovery": "test_a_network_is_discovered test_a_gateway_is_found_while_it_is_announced",
    "discovery-update-info": "test_a_network_is_discovered",
    "dynamic-devices": "test_four_entities_that_come_and_go_without_a_reload",
    "entity-translations": "test_every_entity_has_name_and_icon",
    "entity-unavailable": "test_ledger_and_home_assistant_go_away_in_turn",
    "exception-translations": "test_every_error_has_a_text_and_every_text_its_error",
    "log-when-unavailable": "test_ledger_and_home_assistant_go_away_in_turn",
    "reauthentication-flow": "test_reauth_enrols_again_and_keeps_the_meter "
    "test_reauth_refuses_another_home",
    "reconfiguration-flow": "test_reconfigure_changes_gateways_and_sensors",
    "stale-devices": "test_reconfigure_changes_gateways_and_sensors",
    "test-before-configure": "test_first_form_says_what_is_wrong",
    "unique-config-entry": "test_the_same_home_joins_once",
}
DOCS = {
    "docs-actions": ("automation.md", "## Actions"),
    "docs-conditions": ("automation.md", "## Conditions"),
    "docs-configuration-parameters": ("homeowners.md", "### Appliances"),
    "docs-data-update": ("homeowners.md", "## What is measured, and when"),
    "docs-examples": ("automation.md", "## Blueprints"),
    "docs-high-level-description": ("homeowners.md", "# For homeowners"),
    "docs-installation-instructions": ("homeowners.md", "## Install"),
    "docs-installation-parameters": ("homeowners.md", "### What you set"),
    "docs-known-limitations": ("homeowners.md", "## Known limits"),
    "docs-removal-instructions": ("homeowners.md", "## Leave"),
    "docs-supported-devices": ("homeowners.md", "### Battery"),
    "docs-supported-functions": ("homeowners.md", "## What it does by itself"),
    "docs-triggers": ("automation.md", "## Triggers"),
    "docs-troubleshooting": ("homeowners.md", "## Troubleshooting"),
    "docs-use-cases": ("homeowners.md", "## What people use it for"),
}
BY_MEASURE = {"config-flow-test-coverage", "test-coverage"}
"""Not a test's to tell: the figures stand in the rules' comments."""


def test_all_rules_are_here() -> None:
    assert len(RULES) == 54
    for name, rule in RULES.items():
        status = rule if isinstance(rule, str) else rule["status"]
        assert status in {"done", "todo", "exempt"}, name
        assert isinstance(rule, str) or rule["comment"].strip(), name
        assert status == "exempt" or name in {*CHECKS, *SHOWN, *DOCS, *BY_MEASURE}, name
    assert {*CHECKS, *SHOWN, *DOCS, *BY_MEASURE} <= RULES.keys()


@pytest.mark.parametrize("rule", CHECKS)
def test_sources_follow(rule: str) -> None:
    CHECKS[rule]()


def test_what_shows_a_rule_is_there() -> None:
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = {name for names in SHOWN.values() for name in names.split()}
    assert not named - tests


@pytest.mark.parametrize("rule", DOCS)
def test_docs_have_what_a_rule_asks_for(rule: str) -> None:
    name, heading = DOCS[rule]
    _, found, rest = (ROOT / "docs" / name).read_text().partition(f"{heading}\n")
    assert found, heading
    assert len(rest.split("\n#")[0].strip()) > 80, "and says something"


def test_actions_triggers_and_conditions_are_documented() -> None:
    text = (ROOT / "docs" / "automation.md").read_text()
    for kind in ("services", "triggers", "conditions"):
        for name in yaml.safe_load((HERE / f"{kind}.yaml").read_text()):
            assert f"gridledger.{name}" in text or f"`{name}`" in text, name


def test_supported_versions_are_the_ones_said() -> None:
    hacs: dict[str, Any] = json.loads((ROOT / "hacs.json").read_text())
    assert hacs["homeassistant"] == "2026.6.0"
    assert "Home Assistant 2026.6 or newer" in (ROOT / "docs" / "homeowners.md").read_text()
