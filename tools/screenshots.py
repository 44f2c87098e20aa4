"""Take the README's picture of the report and of an explanation, from the demo's models and scenes.

    make demo
    python tools/screenshots.py

Needs Chromium.  Evaluates the demo's three models with a report, explains the sparse GSMN's worst caption, and writes
docs/images/report.png: the report's captions on the left, the explanation on the right.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from runtime.start import run

from files.errors import InputError
from files.writing import atomic_write, make_folder
from runtime.commandline import Parser

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DEMO_MODELS = [f"runs/demo/{name}/checkpoint/model_best.pth.tar" for name in ("dense", "sparse", "vsrn")]
WINDOW = (1000, 1150)  # of each page, in CSS pixels
GAP = 20  # pixels between the two pages
PICTURE_BYTES = 200_000
PALETTES = (256, 128, 64, 32, 16)  # palettes tried until the picture is small enough


def find_chromium():
    """The browser's path; InputError where there is none."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        raise InputError(f"no Chromium here ({', '.join(CHROMIUM_NAMES)}); apt-get install chromium")
    return path


def make_report(folder):
    """A report of the demo's models with an explanation of each GSMN's worst caption, in a folder."""
    missing = [path for path in DEMO_MODELS if not Path(path).exists()]
    if missing:
        raise InputError(f"{missing[0]}: no such file; `make demo` trains the demo's models")
    command = [sys.executable, "test_stack.py", "--model_path", *DEMO_MODELS, "--ranks", "", "--report", str(folder)]
    done = subprocess.run([*command, "--images", "demo/images", "--explain", "1"], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise InputError(f"test_stack.py ended with {done.returncode}; its message stands above")


def take_screenshot(chromium, address, path):
    """A page, by its address -> PNG of WINDOW's size."""
    flags = ["--headless", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    flags += ["--window-size={},{}".format(*WINDOW), f"--screenshot={path}"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run([chromium, f"--user-data-dir={profile}", *flags, address], capture_output=True, text=True)
    if not path.exists():
        raise InputError(f"Chromium took no picture of {address}: {done.stderr.strip()[-200:]}")


def side_by_side(paths):
    """Pictures of one height -> one, with a light gap between them."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    whole, left = Image.new("RGB", (width, pictures[0].height), "#d0d7de"), 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    return whole


def save_small(picture, path):
    """Write a PNG of at most PICTURE_BYTES, with as many colours as fit."""
    for colours in PALETTES:
        content = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() <= PICTURE_BYTES:
            atomic_write(path, lambda file, content=content: file.write(content.getvalue()))
            return
    raise InputError(f"{path}: {content.tell()} bytes with {PALETTES[-1]} colours, more than {PICTURE_BYTES}")


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--out", default="docs/images/report.png", metavar="FILE", help="picture to write")
    flags = parser.parse_args(arguments)
    os.chdir(Path(__file__).resolve().parent.parent)
    chromium = find_chromium()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        make_report(report)
        explained = next((report / "explain" / "sparse").glob("captions-*.html"))
        shots = [Path(folder) / "left.png", Path(folder) / "right.png"]
        pages = [f"{(report / 'captions.html').as_uri()}#sort=worst", f"{explained.as_uri()}#words=3"]
        for page, shot in zip(pages, shots):
            take_screenshot(chromium, page, shot)
        make_folder(Path(flags.out).parent)
        save_small(side_by_side(shots), Path(flags.out))
    print(f"{flags.out}: {Path(flags.out).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run(main)
