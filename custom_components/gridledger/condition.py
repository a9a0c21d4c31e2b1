"""Conditions for automations: surplus, best price, the permit, the connection to the ledger.

Automations import this module before requirements are installed: it must not import ``client``.
"""

from typing import TYPE_CHECKING, Any, Unpack, override

import voluptuous as vol
from homeassistant.config_entries import ConfigEntryState
from homeassistant.const import CONF_OPTIONS
from homeassistant.core import HomeAssistant
from homeassistant.helpers.condition import Condition, ConditionCheckParams, ConditionConfig
from homeassistant.helpers.typing import ConfigType

from .const import ATTR_CONFIG_ENTRY, DOMAIN
from .trigger import CONF_ABOVE, CONF_BELOW, CONF_KIND, KINDS

if TYPE_CHECKING:
    from .coordinator import GridLedgerRuntime

_HOME_SCHEMA: Any = vol.Schema(
    {vol.Optional(CONF_OPTIONS, default=dict): {vol.Optional(ATTR_CONFIG_ENTRY): str}}
)
_PRICE_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_OPTIONS): {
            vol.Optional(ATTR_CONFIG_ENTRY): str,
            vol.Required(CONF_KIND): vol.In(KINDS),
            vol.Optional(CONF_ABOVE): vol.Coerce(float),
            vol.Optional(CONF_BELOW): vol.Coerce(float),
        }
    }
)


class _HomeCondition(Condition):
    """A condition over what the named home, or any, knows of its ledger."""

    _schema: Any = _HOME_SCHEMA

    @classmethod
    @override
    async def async_validate_config(cls, hass: HomeAssistant, config: ConfigType) -> ConfigType:
        """Validate the options."""
        validated: ConfigType = cls._schema(config)
        return validated

    def __init__(self, hass: HomeAssistant, config: ConditionConfig) -> None:
        """Remember the options."""
        super().__init__(hass, config)
        self._options: dict[str, Any] = config.options or {}

    @override
    def _async_check(self, **kwargs: Unpack[ConditionCheckParams]) -> bool:
        """Ask each home that is meant."""
        wanted = self._options.get(ATTR_CONFIG_ENTRY)
        return any(
            self.holds(entry.runtime_data)
            for entry in self._hass.config_entries.async_entries(DOMAIN)
            if entry.state is ConfigEntryState.LOADED and wanted in (None, entry.entry_id)
        )

    def holds(self, home: GridLedgerRuntime) -> bool:
        """Whether it holds for a home."""
        return home.session.data.connected


class SurplusCondition(_HomeCondition):
    """The sun leaves more than what is on takes. Not while the grid's power isn't known."""

    @override
    def holds(self, home: GridLedgerRuntime) -> bool:
        """Whether there is surplus."""
        return home.keeper.data.surplus is True


class PriceCondition(_HomeCondition):
    """Suppliers' best price is above or below limits, as far as it is known."""

    _schema = _PRICE_SCHEMA

    @override
    def holds(self, home: GridLedgerRuntime) -> bool:
        """Whether the price lies between the limits."""
        data = home.session.data
        selling = self._options[CONF_KIND] == "sell"
        rate = data.best_buy_rate if selling else data.best_sell_rate
        if rate is None or not data.market_known:
            return False
        price = rate.price_micro_per_kwh / 1e6
        above, below = self._options.get(CONF_ABOVE), self._options.get(CONF_BELOW)
        return (above is None or price > above) and (below is None or price < below)


class PermitCondition(_HomeCondition):
    """Supply is granted. Not while it isn't known, nor where no contract says so."""

    @override
    def holds(self, home: GridLedgerRuntime) -> bool:
        """Whether the home may be supplied without a warning or a limit."""
        data = home.session.data
        return (
            data.account is not None
            and data.account.permit is not None
            and data.account.permit.state == "granted"
        )


CONDITIONS: dict[str, type[Condition]] = {
    "is_surplus": SurplusCondition,
    "is_price": PriceCondition,
    "is_connected": _HomeCondition,
    "is_permit_granted": PermitCondition,
}


async def async_get_conditions(hass: HomeAssistant) -> dict[str, type[Condition]]:
    """Return the integration's conditions."""
    return CONDITIONS
