"""Triggers for automations: surplus, sales, orders, prices, bills, the permit and response events.

Automations import this module before requirements are installed: it must not import ``client``.
"""

from abc import abstractmethod
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, override

import voluptuous as vol
from homeassistant.config_entries import ConfigEntryState
from homeassistant.const import CONF_OPTIONS
from homeassistant.core import CALLBACK_TYPE, HomeAssistant, callback
from homeassistant.helpers import config_validation as cv
from homeassistant.helpers.dispatcher import async_dispatcher_connect
from homeassistant.helpers.event import async_track_time_interval
from homeassistant.helpers.trigger import Trigger, TriggerActionRunner, TriggerConfig
from homeassistant.helpers.typing import ConfigType
from homeassistant.util import dt as dt_util

from .const import (
    ATTR_CONFIG_ENTRY,
    DOMAIN,
    EVENTS_ORDER,
    PERMIT_STATES,
    SIGNAL_ORDER,
    SIGNAL_PERMIT,
    SIGNAL_PRICE,
    SIGNAL_SURPLUS,
    SIGNAL_TRADE,
)

if TYPE_CHECKING:
    from homeassistant.helpers.trigger import TriggerNotTriggeredReporter

    from .clock import ChannelClock
    from .models import AccountData
    from .session import LedgerSession

CONF_ABOVE: Final = "above"
CONF_BELOW: Final = "below"
CONF_KIND: Final = "kind"
CONF_CHANGE: Final = "change"
CONF_STATE: Final = "state"
CONF_BEFORE: Final = "before"
_LOOK_S: Final = 5
KINDS: Final = ("sell", "buy")
"""The home sells at suppliers' best rate, and buys at their lowest."""

_HOME: Final[dict[vol.Marker, Any]] = {vol.Optional(ATTR_CONFIG_ENTRY): str}
_HOME_SCHEMA: Any = vol.Schema({vol.Optional(CONF_OPTIONS, default=dict): _HOME})
_ORDER_SCHEMA: Any = vol.Schema(
    {
        vol.Optional(CONF_OPTIONS, default=dict): {
            **_HOME,
            vol.Optional(CONF_CHANGE, default=list(EVENTS_ORDER)): [vol.In(EVENTS_ORDER)],
        }
    }
)
_PRICE_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_OPTIONS): vol.All(
            {
                **_HOME,
                vol.Required(CONF_KIND): vol.In(KINDS),
                vol.Optional(CONF_ABOVE): vol.Coerce(float),
                vol.Optional(CONF_BELOW): vol.Coerce(float),
            },
            vol.Any(
                vol.Schema({vol.Required(CONF_ABOVE): object}, extra=vol.ALLOW_EXTRA),
                vol.Schema({vol.Required(CONF_BELOW): object}, extra=vol.ALLOW_EXTRA),
                msg="give above or below",
            ),
        )
    }
)


class _OptionsTrigger(Trigger):
    """A trigger of the ledger, with its options."""

    _schema: Any
    _said: str

    @classmethod
    @override
    async def async_validate_config(cls, hass: HomeAssistant, config: ConfigType) -> ConfigType:
        """Validate the options."""
        validated: ConfigType = cls._schema(config)
        return validated

    def __init__(self, hass: HomeAssistant, config: TriggerConfig) -> None:
        """Remember the options."""
        super().__init__(hass, config)
        self._options: dict[str, Any] = config.options or {}


class _SignalTrigger(_OptionsTrigger):
    """A trigger that follows a signal of the session, of one home or of any."""

    _signal: str

    @override
    async def async_attach_runner(
        self,
        run_action: TriggerActionRunner,
        did_not_trigger: TriggerNotTriggeredReporter | None = None,
    ) -> CALLBACK_TYPE:
        """Run the action when the signal comes and matters."""
        wanted = self._options.get(ATTR_CONFIG_ENTRY)

        @callback
        def received(entry_id: str, data: dict[str, Any]) -> None:
            if wanted in (None, entry_id) and self.matters(data):
                run_action({ATTR_CONFIG_ENTRY: entry_id, **data}, self._said)

        return async_dispatcher_connect(self._hass, self._signal, received)

    def matters(self, data: dict[str, Any]) -> bool:
        """Whether the options want it."""
        return True


class TradeCommittedTrigger(_SignalTrigger):
    """A sale of the home is in the ledger."""

    _schema, _signal, _said = _HOME_SCHEMA, SIGNAL_TRADE, "a sale was committed"


class SurplusStartedTrigger(_SignalTrigger):
    """The sun leaves more than what is on takes, and did not before."""

    _schema, _signal, _said = _HOME_SCHEMA, SIGNAL_SURPLUS, "surplus started"

    @override
    def matters(self, data: dict[str, Any]) -> bool:
        """Whether it is there now."""
        return bool(data["available"])


class SurplusEndedTrigger(_SignalTrigger):
    """Nothing is left any more of what the sun gives."""

    _schema, _signal, _said = _HOME_SCHEMA, SIGNAL_SURPLUS, "surplus ended"

    @override
    def matters(self, data: dict[str, Any]) -> bool:
        """Whether it is gone now."""
        return not data["available"]


class OrderChangedTrigger(_SignalTrigger):
    """An order of the home was placed, cleared or cancelled."""

    _schema, _signal, _said = _ORDER_SCHEMA, SIGNAL_ORDER, "an order changed"

    @override
    def matters(self, data: dict[str, Any]) -> bool:
        """Whether it is one of the wished changes."""
        return data[CONF_CHANGE] in self._options[CONF_CHANGE]


class PriceCrossedTrigger(_SignalTrigger):
    """Suppliers' best price has crossed a limit."""

    _schema, _signal, _said = _PRICE_SCHEMA, SIGNAL_PRICE, "a price was crossed"

    @override
    def matters(self, data: dict[str, Any]) -> bool:
        """Whether the price was on the other side before. A first price crosses nothing."""
        before, now = data["from_price"], data["price"]
        if data[CONF_KIND] != self._options[CONF_KIND] or before is None or now is None:
            return False
        above, below = self._options.get(CONF_ABOVE), self._options.get(CONF_BELOW)
        return self._within(now, above, below) and not self._within(before, above, below)

    @staticmethod
    def _within(price: float, above: float | None, below: float | None) -> bool:
        return (above is None or price > above) and (below is None or price < below)


_PERMIT_SCHEMA: Any = vol.Schema(
    {
        vol.Optional(CONF_OPTIONS, default=dict): {
            **_HOME,
            vol.Optional(CONF_STATE, default=list(PERMIT_STATES)): vol.All(
                cv.ensure_list, [vol.In(PERMIT_STATES)]
            ),
        }
    }
)


def _soon_schema(before: str) -> Any:
    return vol.Schema(
        {
            vol.Optional(CONF_OPTIONS, default=dict): {
                **_HOME,
                vol.Optional(CONF_BEFORE, default=before): vol.All(
                    cv.positive_time_period, vol.Range(max=timedelta(days=31))
                ),
            }
        }
    )


class PermitChangedTrigger(_SignalTrigger):
    """The home was warned, limited, suspended, or is granted its supply again."""

    _schema, _signal, _said = _PERMIT_SCHEMA, SIGNAL_PERMIT, "the permit changed"

    @override
    def matters(self, data: dict[str, Any]) -> bool:
        """Whether it is one of the wished states."""
        return data["state"] in self._options[CONF_STATE]


class _SoonTrigger(_OptionsTrigger):
    """Something of the ledger comes within a time; each thing triggers once.

    What lies within that time already when a home is first looked at, after a start for
    instance, triggers nothing.
    """

    @override
    async def async_attach_runner(
        self,
        run_action: TriggerActionRunner,
        did_not_trigger: TriggerNotTriggeredReporter | None = None,
    ) -> CALLBACK_TYPE:
        """Look every few seconds what has come near."""
        known: dict[str, set[str]] = {}
        before: timedelta = self._options[CONF_BEFORE]

        @callback
        def look(now: datetime) -> None:
            for entry in self._hass.config_entries.async_entries(DOMAIN):
                wanted = self._options.get(ATTR_CONFIG_ENTRY)
                if entry.state is not ConfigEntryState.LOADED or wanted not in (
                    None,
                    entry.entry_id,
                ):
                    continue
                session: LedgerSession = entry.runtime_data.session
                if session.clock is None or session.data.account is None:
                    continue
                first = entry.entry_id not in known
                told = known.setdefault(entry.entry_id, set())
                near = {
                    name: data
                    for name, at, data in self.things(
                        session.data.account, session.clock, session.data.currency
                    )
                    if at - before <= now
                }
                fresh = {} if first else {k: v for k, v in near.items() if k not in told}
                told.update(near)
                for data in fresh.values():
                    run_action({ATTR_CONFIG_ENTRY: entry.entry_id, **data}, self._said)

        look(dt_util.utcnow())
        return async_track_time_interval(self._hass, look, timedelta(seconds=_LOOK_S))

    @abstractmethod
    def things(
        self, account: AccountData, clock: ChannelClock, currency: str
    ) -> Iterator[tuple[str, datetime, dict[str, Any]]]:
        """Return what may come near: its name, when it is, and what to tell of it."""


class BillDueTrigger(_SoonTrigger):
    """A bill is due, or will be within a time."""

    _schema, _said = _soon_schema("00:00:00"), "a bill is due"

    @override
    def things(
        self, account: AccountData, clock: ChannelClock, currency: str
    ) -> Iterator[tuple[str, datetime, dict[str, Any]]]:
        """Return open bills, but for what is disputed."""
        for bill in account.bills:
            if bill.open_micro > bill.disputed_micro:
                due = clock.real_datetime(bill.due_at)
                yield f"{bill.number}/{bill.due_at}", due, bill.as_response(clock, currency)


class ResponseEventSoonTrigger(_SoonTrigger):
    """A response event of the home's zone begins within a time."""

    _schema, _said = _soon_schema("00:30:00"), "a response event begins soon"

    @override
    def things(
        self, account: AccountData, clock: ChannelClock, currency: str
    ) -> Iterator[tuple[str, datetime, dict[str, Any]]]:
        """Return events that weren't called off."""
        for event in account.responses:
            if not event.cancelled:
                start = clock.real_datetime(event.start)
                yield event.event_id, start, event.as_response(clock, currency)


TRIGGERS: dict[str, type[Trigger]] = {
    "surplus_started": SurplusStartedTrigger,
    "surplus_ended": SurplusEndedTrigger,
    "trade_committed": TradeCommittedTrigger,
    "order_changed": OrderChangedTrigger,
    "price_crossed": PriceCrossedTrigger,
    "bill_due": BillDueTrigger,
    "permit_changed": PermitChangedTrigger,
    "response_event_soon": ResponseEventSoonTrigger,
}


async def async_get_triggers(hass: HomeAssistant) -> dict[str, type[Trigger]]:
    """Return the integration's triggers."""
    return TRIGGERS
