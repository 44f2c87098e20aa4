"""Explanations of one score."""
