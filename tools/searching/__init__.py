"""Indexes, shortlists and re-ranking."""
