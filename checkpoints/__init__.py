"""Checkpoints: the file, its fields, models loaded from it, and runs that go on from it."""
