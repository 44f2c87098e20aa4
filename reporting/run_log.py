"""Reads log.jsonl and config.json of a training, which training/logger.py writes."""

import json

from files.errors import InputError
from files.text import read_bytes, read_json

LOG, CONFIG = "log.jsonl", "config.json"


def read_log(path):
    """log.jsonl -> (steps, validations), a list of dicts each; damaged lines are left out.

    InputError where there is neither.
    """
    rows = [row for row in map(row_of, read_bytes(path).splitlines()) if row]
    if not rows:
        raise InputError(f"{path}: no step and no validation as train.py writes them")
    return [row for row in rows if isinstance(row.get("losses"), dict)], [row for row in rows if "rsum" in row]


def row_of(line):
    """A line of log.jsonl as a dict; None for one that is damaged or was cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("Eiters"), int) else None


def read_config(path):
    """config.json -> a dict; None where it is damaged or missing."""
    try:
        config = read_json(path)
    except InputError:
        return None
    whole = isinstance(config, dict) and isinstance(config.get("opt"), dict)
    return config if whole and isinstance(config.get("resumed", []), list) else None
