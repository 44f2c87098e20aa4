"""tools/screenshots.py: what is missing is said, and the picture stays small."""

import sys

import numpy as np
import pytest
from browser import find_browser
from PIL import Image
from tiny import message

from tools import screenshots as tool


def test_complaints(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "DEMO_MODELS", [tmp_path / "none.pth.tar"])
    assert "`make demo` trains the demo's models" in message(tool.make_report, tmp_path)
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    assert "apt-get install chromium" in message(tool.find_chromium)


def test_a_page_becomes_a_picture(tmp_path):
    find_browser()
    (tmp_path / "page.html").write_text("<body style='margin: 0; background: rgb(10, 200, 30)'>")
    tool.take_screenshot(tool.find_chromium(), (tmp_path / "page.html").as_uri(), tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == tool.WINDOW and shot.convert("RGB").getpixel((500, 500)) == (10, 200, 30)
    said = message(tool.take_screenshot, sys.executable, "page.html", tmp_path / "none.png")
    assert "Chromium took no picture of page.html" in said


def test_pictures_are_small(tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in (("a", 3), ("b", 200)):
        noise = rng.integers(colour, colour + 40, (300, 200, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    whole = tool.side_by_side([tmp_path / "a.png", tmp_path / "b.png"])
    assert whole.size == (2 * 200 + tool.GAP, 300)
    tool.save_small(whole, tmp_path / "whole.png")
    assert (tmp_path / "whole.png").stat().st_size <= tool.PICTURE_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "PICTURE_BYTES", 1000)
        assert "more than 1000" in message(tool.save_small, whole, tmp_path / "whole.png")
