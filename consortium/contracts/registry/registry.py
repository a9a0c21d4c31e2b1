"""Contract `registry`: the channel's settings and its connection points."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from consortium.chaincode.api import (
    Conflict,
    Context,
    Contract,
    Identifier,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..common import access, settings
from ..common.clock import Replay
from ..common.settings import Currency, EnergySettings, IntervalLength, TaxRate

RESERVED_PREFIXES = ("SUPPLIER-", "GRID-", "BALANCE-", "TAX-", "CLEARING-")
"""Of accounts that belong to utilities and to the clearing house."""

Power = Annotated[int, Integer(0, 10_000_000, "W")]


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection point: where a home meets the grid."""

    connection_id: Identifier
    utility: MspId
    zone: Identifier
    max_export_w: Power
    max_import_w: Power


def connection_of(context: Context, connection_id: str) -> Connection:
    """A registered connection; raises NotFound."""
    stored = context.get_state(f"connection/{connection_id}")
    if stored is None:
        raise NotFound(
            f"connection {connection_id} is not registered; its utility's operator calls "
            "registry:RegisterConnection"
        )
    return stored_record(Connection, stored)


def energy_settings(context: Context) -> EnergySettings:
    """The channel's settings; raises NotFound before they are configured."""
    return settings.read(context, EnergySettings, "registry:Configure")


class Registry(Contract):
    """Settings and connections."""

    name: ClassVar[str] = "registry"

    @transaction
    def configure(
        self,
        context: Context,
        *,
        interval_s: IntervalLength = 900,
        currency: Currency = "EUR",
        replay: Replay | None = None,
        quote_validity_s: Annotated[int, Integer(10, 86_400, "s")] = 300,
        grid_fee_micro_per_kwh: Annotated[int, Integer(0, 10**9, "micro-units per kWh")] = 0,
        approvals: Annotated[int, Integer(1, 64)] = 2,
        sale_tax_ppm: TaxRate = 0,
    ) -> EnergySettings:
        """Set the channel up, once."""
        return settings.configure(
            context,
            EnergySettings(
                interval_s,
                currency,
                replay,
                quote_validity_s,
                grid_fee_micro_per_kwh,
                approvals,
                sale_tax_ppm,
            ),
        )

    @query
    def settings(self, context: Context) -> EnergySettings:
        """The channel's settings."""
        return energy_settings(context)

    @transaction
    def register_connection(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        utility: MspId,
        zone: Identifier,
        max_export_w: Power,
        max_import_w: Power,
    ) -> Connection:
        """Enter a connection point; the same again changes nothing."""
        access.require_operator(context.creator, utility, f"register connections of {utility}")
        if connection_id.startswith(RESERVED_PREFIXES):
            raise InvalidArgument(
                f"connection_id is {connection_id}, but {' and '.join(RESERVED_PREFIXES)} begin "
                "the names of utilities' accounts"
            )
        connection = Connection(connection_id, utility, zone, max_export_w, max_import_w)
        key = f"connection/{connection_id}"
        stored = context.get_state(key)
        if stored is None:
            context.put_state(key, canonical_json(connection))
        elif stored_record(Connection, stored) != connection:
            raise Conflict(f"connection {connection_id} is registered already, and differently")
        return connection

    @query
    def connection(self, context: Context, *, connection_id: Identifier) -> Connection:
        """A connection point."""
        return connection_of(context, connection_id)
