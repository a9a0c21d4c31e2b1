"""Meters and the readings they signed, who may read them, and which meters are silent."""
