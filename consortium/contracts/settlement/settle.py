"""Settlement of one interval: what was traded against what was metered.

Pure functions of integers. Energy in Wh, prices in micro-units per kWh, money in micro-units.

Trades are financially firm: a buyer pays for and receives what it bought, a seller is paid for
what it sold. Whoever delivers less than it sold pays the shortfall price for what is missing;
whoever takes less than it bought sells the rest at the surplus price. What is exported and
imported beyond trades is shared within the community first, and what is left then goes at base
rate and tariff. Nothing is paid twice and nothing is left out: each line of a connection has its
counterparty, and all lines of an interval sum to zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from consortium.chaincode.api import ensure

from ..common.money import amount_micro
from .sharing import Method, pro_rata, share

MARKET = "CLEARING-MARKET"
"""Counterparty of every fill: the clearing house."""
ROUNDING = "CLEARING-ROUNDING"
"""Where the roundings of buyers and sellers meet: at most half a micro-unit for each fill."""


@dataclass(frozen=True, slots=True)
class Fill:
    """What a connection bought or sold in the interval. A trade with a supplier names it."""

    energy_wh: int
    """Positive: bought. Negative: sold."""
    price: int
    """What the buyer pays, fees of the path included, or what the seller gets, fees taken off."""
    fee: int = 0
    """What goes to the grid for each kWh: within the buyer's price, on top of the seller's."""
    counterparty: str = MARKET
    paid: tuple[int, int] | None = None
    """What was paid when it was traded, as (amount, fee): settlement says so and pays no more."""
    holder: str = ""
    """Whose the energy is, where the trade names it and the clearing house pays."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The prices of one connection in the interval, each with who is paid or pays."""

    tariff: int
    """For import that wasn't bought."""
    base_rate: int
    """For export that wasn't sold."""
    shortfall_price: int
    surplus_price: int
    supplier: str
    """Account of who sells at the tariff and buys at the base rate."""
    balancer: str
    """Account of who makes up for deviations: the balance responsible party."""
    grid: str
    """Account of the grid operator."""
    import_fee: int = 0
    """For import that wasn't bought, on top of the tariff; it goes to the grid."""
    shared_fee: int = 0
    """For what is taken from the community; it goes to the grid."""

    def shortfall(self, fills: Sequence[Fill]) -> int:
        """What is paid for what is missing: never less than it was sold for, or costs to buy."""
        sold = [fill.price + fill.fee for fill in fills if fill.energy_wh < 0]
        return max(self.shortfall_price, self.tariff, *sold)

    @property
    def surplus(self) -> int:
        """What is paid for what was bought and not used: never more than the base rate."""
        return min(self.surplus_price, self.base_rate)


@dataclass(frozen=True, slots=True)
class Metered:
    """A connection's interval."""

    connection: str
    import_wh: int
    export_wh: int
    fills: tuple[Fill, ...]
    terms: Terms
    community: str = ""


@dataclass(frozen=True, slots=True)
class Community:
    """How a community shares what its members have left after trades."""

    price: int
    """What a member that takes pays to those that give, for each kWh."""
    method: Method
    keys: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One amount, and all that it is computed from."""

    connection: str
    kind: str
    """bought, fee, sold, shortfall, surplus, shared, feed_in, import."""
    energy_wh: int
    price: int
    amount_micro: int
    """What the connection receives; negative: pays."""
    counterparty: str
    paid: bool = False
    """It was paid when it was traded."""


@dataclass(frozen=True, slots=True)
class Token:
    """Exported energy of one connection's interval in somebody's hands."""

    origin: str
    holder: str
    energy_wh: int
    retired_wh: int
    """Of it, what the holder's own import of the interval used up."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The lines and tokens of one interval."""

    lines: tuple[Line, ...]
    tokens: tuple[Token, ...]
    rounding_micro: int
    """What the market's account is left with, which goes to ROUNDING."""

    def amounts(self) -> dict[str, int]:
        """What each account receives: connections and counterparties, ROUNDING too; sums to 0."""
        total: dict[str, int] = {}
        for line in self.lines:
            for account, amount in (
                (line.connection, line.amount_micro),
                (line.counterparty, -line.amount_micro),
            ):
                total[account] = total.get(account, 0) + amount
        if self.rounding_micro:
            total[MARKET] = total.get(MARKET, 0) - self.rounding_micro
            total[ROUNDING] = total.get(ROUNDING, 0) + self.rounding_micro
        return total


def _line(
    connection: str, kind: str, energy_wh: int, price: int, counterparty: str, *, pays: bool
) -> Line:
    amount = amount_micro(energy_wh, price)
    return Line(connection, kind, energy_wh, price, -amount if pays else amount, counterparty)


@dataclass(slots=True)
class _Balance:
    """What is left of a connection's interval after its trades."""

    bought_wh: int
    sold_wh: int
    delivered_wh: int
    """Of what it sold."""
    own_export_wh: int
    open_import_wh: int


def _balance(metered: Metered) -> _Balance:
    bought = sum(fill.energy_wh for fill in metered.fills if fill.energy_wh > 0)
    sold = -sum(fill.energy_wh for fill in metered.fills if fill.energy_wh < 0)
    delivered = min(sold, metered.export_wh)
    return _Balance(
        bought,
        sold,
        delivered,
        metered.export_wh - delivered,
        max(0, metered.import_wh - bought),
    )


def _trade_lines(metered: Metered, balance: _Balance) -> Iterator[Line]:
    name, terms = metered.connection, metered.terms
    for fill in metered.fills:
        # Each part of the price is rounded by itself.
        if fill.energy_wh > 0:
            net = fill.price - fill.fee
            traded = _line(name, "bought", fill.energy_wh, net, fill.counterparty, pays=True)
        elif fill.energy_wh < 0:
            gross = fill.price + fill.fee
            traded = _line(name, "sold", -fill.energy_wh, gross, fill.counterparty, pays=False)
        else:
            continue
        fee = _line(name, "fee", abs(fill.energy_wh), fill.fee, terms.grid, pays=True)
        if fill.paid is not None:
            traded = replace(traded, amount_micro=fill.paid[0], paid=True)
            fee = replace(fee, amount_micro=fill.paid[1], paid=True)
        yield traded
        if fill.fee:
            yield fee
    missing = balance.sold_wh - balance.delivered_wh
    if missing:
        price = terms.shortfall(metered.fills)
        yield _line(name, "shortfall", missing, price, terms.balancer, pays=True)
    unused = max(0, balance.bought_wh - metered.import_wh)
    if unused:
        yield _line(name, "surplus", unused, terms.surplus, terms.balancer, pays=False)


def settle(
    metered: Sequence[Metered], communities: Mapping[str, Community] | None = None
) -> Settlement:
    """Settle one interval of connections that share a market.

    Args:
        metered: Each connection once.
        communities: Terms of the communities that connections name.
    """
    communities = communities or {}
    ordered = sorted(metered, key=lambda each: each.connection)
    balances = {each.connection: _balance(each) for each in ordered}
    lines: list[Line] = []
    for each in ordered:
        lines += _trade_lines(each, balances[each.connection])
    shared: list[tuple[str, str, int]] = []
    for name in sorted(communities):
        lines += _share_community(name, communities[name], ordered, balances, shared)
    for each in ordered:
        left, terms = balances[each.connection], each.terms
        if left.own_export_wh:
            lines.append(
                _line(
                    each.connection,
                    "feed_in",
                    left.own_export_wh,
                    terms.base_rate,
                    terms.supplier,
                    pays=False,
                )
            )
        if left.open_import_wh:
            lines.append(
                _line(
                    each.connection,
                    "import",
                    left.open_import_wh,
                    terms.tariff,
                    terms.supplier,
                    pays=True,
                )
            )
            if terms.import_fee:
                lines.append(
                    _line(
                        each.connection,
                        "fee",
                        left.open_import_wh,
                        terms.import_fee,
                        terms.grid,
                        pays=True,
                    )
                )
    tokens = _tokens(ordered, balances, shared)
    rounding = -sum(line.amount_micro for line in lines if line.counterparty == MARKET)
    return Settlement(tuple(lines), tokens, rounding)


def _share_community(
    name: str,
    community: Community,
    ordered: Sequence[Metered],
    balances: dict[str, _Balance],
    shared: list[tuple[str, str, int]],
) -> Iterator[Line]:
    """Lines of what a community shares; takes it out of the balances and notes who got whose."""
    members = [each.connection for each in ordered if each.community == name]
    exports = {m: balances[m].own_export_wh for m in members if balances[m].own_export_wh}
    imports = {m: balances[m].open_import_wh for m in members if balances[m].open_import_wh}
    result = share(exports, imports, community.method, community.keys)
    pairs = _pairs(result.given, result.taken)
    shared.extend(pairs)
    for giver, taker, energy_wh in pairs:
        balances[giver].own_export_wh -= energy_wh
        balances[taker].open_import_wh -= energy_wh
        yield _line(giver, "shared", energy_wh, community.price, taker, pays=False)
        terms = next(each.terms for each in ordered if each.connection == taker)
        if terms.shared_fee:
            yield _line(taker, "fee", energy_wh, terms.shared_fee, terms.grid, pays=True)


def _pairs(given: Mapping[str, int], taken: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """Who gets whose energy, (giver, taker, Wh): both in order of names, so that it is one way."""
    pairs: list[tuple[str, str, int]] = []
    givers = [[name, energy_wh] for name, energy_wh in sorted(given.items()) if energy_wh]
    for taker, wanted in sorted(taken.items()):
        left = wanted
        while left:
            giver, there = givers[0]
            assert isinstance(there, int)
            part = min(left, there)
            pairs.append((str(giver), taker, part))
            left -= part
            if part == there:
                givers.pop(0)
            else:
                givers[0][1] = there - part
    ensure(not givers, "as much is taken as is given")
    return pairs


def _tokens(
    ordered: Sequence[Metered],
    balances: Mapping[str, _Balance],
    shared: Sequence[tuple[str, str, int]],
) -> tuple[Token, ...]:
    """Assign each exported Wh once.

    What sellers delivered goes to those who bought, in proportion to what they bought; what was
    shared to who took it; the rest to who pays the base rate. A trade with a named counterparty
    gives that one the token. A holder's own import of the interval retires what it holds.
    """
    held: list[tuple[str, str, int]] = []
    pool: dict[str, int] = {}
    for each in ordered:
        sales = [fill for fill in each.fills if fill.energy_wh < 0]
        parts = pro_rata(
            balances[each.connection].delivered_wh, [-fill.energy_wh for fill in sales]
        )
        for fill, part in zip(sales, parts, strict=True):
            holder = fill.holder or fill.counterparty
            if holder == MARKET:
                pool[each.connection] = pool.get(each.connection, 0) + part
            elif part:
                held.append((each.connection, holder, part))
    buyers = {
        each.connection: sum(
            fill.energy_wh
            for fill in each.fills
            if fill.energy_wh > 0 and fill.counterparty == MARKET and not fill.holder
        )
        for each in ordered
    }
    buyers = {name: bought for name, bought in buyers.items() if bought}
    delivered = min(sum(pool.values()), sum(buyers.values()))
    names, sellers = sorted(buyers), sorted(pool)
    got = dict(zip(names, pro_rata(delivered, [buyers[name] for name in names]), strict=True))
    given = dict(zip(sellers, pro_rata(delivered, [pool[name] for name in sellers]), strict=True))
    held += _pairs(given, got)
    # Buyers elsewhere: the market holds what nobody here has bought.
    held += [
        (name, MARKET, pool[name] - given[name]) for name in sellers if pool[name] > given[name]
    ]
    held += shared
    held += [
        (each.connection, each.terms.supplier, balances[each.connection].own_export_wh)
        for each in ordered
        if balances[each.connection].own_export_wh
    ]
    imports = {each.connection: each.import_wh for each in ordered}
    tokens: list[Token] = []
    for origin, holder, energy_wh in held:
        retired = min(energy_wh, imports.get(holder, 0))
        if holder in imports:
            imports[holder] -= retired
        tokens.append(Token(origin, holder, energy_wh, retired))
    return tuple(tokens)
