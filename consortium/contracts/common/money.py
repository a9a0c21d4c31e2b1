"""Money: integers of micro-units of the channel's currency, rounded half to even, once."""

WH_PER_KWH = 1000
MICRO = 1_000_000
"""Micro-units of one currency unit."""


def half_even(numerator: int, denominator: int) -> int:
    """The quotient rounded to the nearest integer, ties to the even one; denominator > 0."""
    quotient, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and quotient % 2):
        quotient += 1
    return quotient


def amount_micro(energy_wh: int, price_micro_per_kwh: int) -> int:
    """The price of an energy."""
    return half_even(energy_wh * price_micro_per_kwh, WH_PER_KWH)


def tax_micro(amount_micro: int, rate_ppm: int) -> int:
    """What is taken of an amount as tax; nothing of one that isn't earned but paid."""
    return half_even(max(0, amount_micro) * rate_ppm, MICRO)


def convert_micro(amount_micro: int, rate_micro: int) -> int:
    """An amount in the currency that `rate_micro` micro-units of buy one unit of."""
    return half_even(amount_micro * rate_micro, MICRO)


def ceiling_micro(energy_wh: int, price_micro_per_kwh: int) -> int:
    """The price of an energy, rounded up: what must be set aside for it."""
    return -(-energy_wh * price_micro_per_kwh // WH_PER_KWH)
