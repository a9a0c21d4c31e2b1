"""Rates, quotes, orders, auctions, continuous and sealed books, bilateral contracts, response."""
