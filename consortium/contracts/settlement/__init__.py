"""Traded against metered energy: firm trades, sharing, days and their finality."""
