"""The Energy dashboard's preferences, as Home Assistant 2026.6 to 2026.11 store them."""

from custom_components.gridledger.energy_preferences import plant_from_preferences


def test_nothing_set_up() -> None:
    assert plant_from_preferences(None) == {}
    assert plant_from_preferences({"energy_sources": []}) == {}


def test_unified_grid() -> None:
    preferences = {
        "energy_sources": [
            {
                "type": "grid",
                "stat_energy_from": "sensor.import",
                "stat_energy_to": "sensor.export",
                "stat_rate": "sensor.power",
            },
            {"type": "solar", "stat_energy_from": "sensor.east", "stat_rate": "sensor.east_w"},
            {"type": "solar", "stat_energy_from": "sensor.west"},
            {
                "type": "battery",
                "stat_energy_from": "sensor.out",
                "stat_energy_to": "sensor.in",
                "power_config": {"stat_rate_inverted": "sensor.battery_w"},
                "stat_rate": "sensor.made_by_core",
                "stat_soc": "sensor.soc",
                "capacity": 9.8,
            },
            {"type": "gas", "stat_energy_from": "sensor.gas"},
        ]
    }
    assert plant_from_preferences(preferences) == {
        "grid_import_energy": ["sensor.import"],
        "grid_export_energy": ["sensor.export"],
        "grid_power": "sensor.power",
        "pv_energy": ["sensor.east", "sensor.west"],
        "pv_power": ["sensor.east_w"],
        "battery_discharge_energy": ["sensor.out"],
        "battery_charge_energy": ["sensor.in"],
        "battery_power": "sensor.battery_w",
        "invert_battery_power": True,
        "battery_level": "sensor.soc",
        "battery_capacity": 9.8,
    }


def test_grid_in_flows() -> None:
    preferences = {
        "energy_sources": [
            {
                "type": "grid",
                "flow_from": [
                    {"stat_energy_from": "sensor.t1"},
                    {"stat_energy_from": "sensor.t2"},
                ],
                "flow_to": [{"stat_energy_to": "sensor.back"}],
                "power": [{"stat_rate": "sensor.w"}],
            }
        ]
    }
    assert plant_from_preferences(preferences) == {
        "grid_import_energy": ["sensor.t1", "sensor.t2"],
        "grid_export_energy": ["sensor.back"],
        "grid_power": "sensor.w",
    }


def test_what_is_no_entity_is_left_out() -> None:
    preferences = {
        "energy_sources": [
            {"type": "grid", "stat_energy_from": "opower:elec", "stat_energy_to": None},
            {"type": "grid", "stat_energy_from": None, "stat_energy_to": "sensor.export"},
        ]
    }
    assert plant_from_preferences(preferences) == {"grid_export_energy": ["sensor.export"]}
