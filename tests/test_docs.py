"""README and docs: the map names every file, links lead somewhere, documented commands have the flags they use."""

import csv
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import COLOURS, TEMPLATES, THINGS

from tools import parse_dependencies
from tools.searching import collection

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "checkpoints docs files modules reporting runtime systems tests tools training".split()
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def present():
    """Every file a reader may open, by its path from the root; packages' empty __init__.py aside."""
    files = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    ours = re.compile(r".*\.(py|c|h|md|toml|txt|html|css|js|ini)|Makefile|LICENSE")
    return {name for name in names if ours.fullmatch(name) and not name.endswith("__init__.py")}


def test_the_map_names_every_file_once():
    text = (ROOT / "docs/map.md").read_text()
    folder, named = "", []
    for line in text.splitlines():
        if line.startswith("## "):
            folder = (re.findall(r"`([\w/]+)/`", line) or [""])[0]
        if row := re.match(r"\| `([^`]+)` \| (.+) \|$", line):
            named.append(f"{folder}/{row[1]}".lstrip("/"))
            assert row[2].strip()
    assert len(named) == len(set(named))
    listed = {name for name in named if not name.endswith("/")}
    whole = tuple(name for name in named if name.endswith("/"))  # folders named as a whole
    there = {name for name in present() if not name.startswith(whole or ("//",))}
    assert there - listed == set(), "missing from docs/map.md"
    assert listed - there == set(), "named in docs/map.md but not there"
    assert all((ROOT / name).is_dir() for name in whole)


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def commands(page):
    """(script, its flags) of every documented command."""
    text = page.read_text().replace("\\\n", " ")
    in_block, in_line = r"python ((?:tools/)?\w+\.py)((?:[^\n`|;#]|#\d)*)", r"`((?:tools/)?\w+\.py) ([^\n`|;#]*)`"
    for script, rest in [*re.findall(in_block, text), *re.findall(in_line, text)]:
        yield script, re.findall(r"(?<!\S)(--[a-zA-Z]\w*)", rest)


@pages
def test_documented_commands_exist_with_their_flags(page):
    shared = [path for folder in ("checkpoints", "runtime", "systems") for path in (ROOT / folder).glob("*.py")]
    for script, flags in commands(page):
        path = ROOT / script if (ROOT / script).is_file() else ROOT / "tools" / script
        assert path.is_file(), script
        declared = "".join(source.read_text() for source in [path, *shared])
        for flag in flags:
            assert f'"{flag}"' in declared or flag == "--help", f"{script} {flag}"


def test_readme_names_every_tool_once():
    table = (ROOT / "README.md").read_text().partition("## Tools")[2].partition("```")[0]
    named = re.findall(r"`tools/(\w+\.py)`", table.partition("| tool |")[2])
    assert sorted(named) == sorted(path.name for path in (ROOT / "tools").glob("*.py") if path.name != "__init__.py")


# ---- the page of one's own data, run as it is written

SMALL = {  # flags after those of the page: no download, a few seconds
    "tools/prepare_captions.py": "--dev 3 --test 3 --threshold 1",
    "tools/extract_features.py": "--grid shufflenet_v2_x0_5 --no_pretrained --size 64 --workers 0 --regions 4",
    "train.py": "--embed_size 16 --word_dim 8 --num_epochs 1 --workers 0 --batch_size 20 --device cpu",
    "train.py --model vsrn": "--dim_vid 16 --dim_hidden 8 --dim_word 8 --max_len 20",
    "train.py --data_name": "--num_block 4 --feat_dim 4 --hid_dim 8",
}


class Chain:
    """Stands in for spaCy: every word depends on the one before it."""

    name = "chain"

    def __init__(self, opt):
        pass

    def __call__(self, captions):
        return [list(range(sum(map(len, caption)))) for caption in captions]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The page's folder photos/ and its captions.csv, sixteen pictures of noise."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    things = [(colour, thing) for colour in COLOURS for thing in THINGS]
    with open("captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i, (colour, thing) in enumerate(things):
            noise = np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8)
            Image.fromarray(noise).save(f"photos/{i}.jpg")
            rows.writerows((f"{i}.jpg", text.format(colour, thing)) for text in TEMPLATES)
    monkeypatch.setitem(parse_dependencies.PARSERS, "spacy", Chain)
    monkeypatch.setattr(collection, "Spacy", Chain)


def test_the_page_of_own_data_runs(photos):
    pytest.importorskip("faiss")
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/data.md").read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    ran = [line.removeprefix("python ").partition("#")[0] for line in lines if line.startswith("python ")]
    ran = [line for line in ran if "corenlp" not in line]  # needs a server
    assert len(ran) >= 11
    for line in ran:
        small = " ".join(flags for start, flags in SMALL.items() if line.startswith(start))
        script, *flags = shlex.split(f"{line} {small}")
        main = import_module(script.removesuffix(".py").replace("/", ".")).main
        assert not main(flags), line
    assert list(Path().glob("search-*.html"))
