"""How a script ends and prints, whatever the terminal's encoding."""

from runtime.start import run

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRINTS = """
import sys
from runtime.start import run
from files.errors import InputError, warn
def main():
    print("naïve ‹word›")
    warn("naïve")
    raise InputError("no such word: ‹…›")
run(main)
"""


def test_a_terminal_that_lacks_characters_gets_escapes():
    done = subprocess.run(
        [sys.executable, "-c", PRINTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == "na\\xefve \\u2039word\\u203a\n"
    assert done.stderr == "warning: na\\xefve\nerror: no such word: \\u2039\\u2026\\u203a\n"


def test_a_name_longer_than_the_system_allows_is_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        run(lambda: os.stat(tmp_path / ("n" * 300)))
    assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
