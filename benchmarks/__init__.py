"""Benchmarks: what the network does in a second, and what a transaction costs. See script/bench."""
