"""Durable storage that knows nothing of ledgers: LMDB environments and append-only segments."""
