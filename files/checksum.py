"""Checksums of files."""

import hashlib
from pathlib import Path

from tqdm import tqdm

from files.opening import open_regular


def sha256(path):
    """The SHA-256 of a file's bytes, as hexadecimal text; with a progress bar."""
    path, digest = Path(path), hashlib.sha256()
    with (
        open_regular(path) as file,
        tqdm(
            total=path.stat().st_size,
            desc=f"checksum of {path.name}",
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
        ) as bar,
    ):
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
