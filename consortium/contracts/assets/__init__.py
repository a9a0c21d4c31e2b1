"""What can be owned: money, tokens of metered energy, credits, certificates."""
