"""Tariffs, supply, bills, prepayment and the permit; and what is due for them."""
