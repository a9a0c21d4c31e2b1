"""Diagnostics: how things stand, without secrets and without a home's load."""

from typing import Any

from homeassistant.components.diagnostics import REDACTED, async_redact_data
from homeassistant.core import HomeAssistant

from .const import (
    CONF_BUNDLE,
    CONF_CONNECTION,
    CONF_ENROLLMENT_ID,
    CONF_SECRET,
)
from .coordinator import GridLedgerConfigEntry

TO_REDACT = {CONF_BUNDLE, CONF_CONNECTION, CONF_ENROLLMENT_ID, CONF_SECRET, "title", "unique_id"}


async def async_get_config_entry_diagnostics(
    hass: HomeAssistant, entry: GridLedgerConfigEntry
) -> dict[str, Any]:
    """Return diagnostics for a config entry."""
    runtime = entry.runtime_data
    session, meter = runtime.session, runtime.home.meter
    certificate = session.client.identity.certificate
    summary = await hass.async_add_executor_job(runtime.outbox.summary)
    recent = await hass.async_add_executor_job(runtime.outbox.recent, 20)
    data = session.data
    return {
        "entry": async_redact_data(dict(entry.data), TO_REDACT),
        "identity": {
            "msp_id": session.msp_id,
            "valid_from": certificate.not_valid_before_utc.isoformat(),
            "valid_until": certificate.not_valid_after_utc.isoformat(),
        },
        "ledger": {
            "connected": data.connected,
            "gateway": session.client.address,
            "currency": data.currency,
            "rates": len(data.rates),
            "trades": len(data.trades),
            "interval_s": None if session.clock is None else session.clock.interval_s,
            "replays": None if session.clock is None else session.clock.replays,
        },
        "meter": {
            "registered": session.meter_id is not None,
            "started": bool(meter and meter.started),
            "sensors": 0 if meter is None else len(meter.keys),
            "cut_at": None if meter is None else meter.cut_at,
        },
        "outbox": {
            "queued": summary.queued,
            "refused": summary.refused,
            "last_committed": summary.last_committed,
            # When a home used how much is its own business: states and qualities only.
            "recent": [
                {
                    "interval_start": reading.interval_start,
                    "state": reading.state,
                    "quality": reading.fields.get("quality"),
                    # The contract's reasons name the meter, which names the connection.
                    "note": reading.note
                    and reading.note.replace(entry.data[CONF_CONNECTION], REDACTED),
                }
                for reading in recent
            ],
        },
    }
