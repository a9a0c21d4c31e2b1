"""What was fed in against what was metered: losses, alerts, reliability."""
