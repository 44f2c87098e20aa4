"""The systems: their table, their flags, and one file for each model."""
