"""GSMN's scores of all pairs by compiled C, on a CPU; README.md of this folder."""
