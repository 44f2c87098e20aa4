"""docs/data.md from beginning to end on thirty photographs: every step one command, a wrong order told."""

import json
import re
from pathlib import Path

import pytest
from tiny import message, shared

import test
import train
from files.errors import InputError
from tools import check_data, extract_features, parse_dependencies, prepare_captions, search
from tools.own_data import parsers
from tools.searching import sentences

WHERE = "--data_path data --data_name mine_precomp"
VOCAB = "--vocab_path vocab"
SMALL = f"{WHERE} {VOCAB} --img_dim 1024 --embed_size 32 --word_dim 16 --batch_size 50 --num_epochs 1 --workers 0"
MODELS = {
    "vsrn": "--model vsrn --dim_vid 32 --dim_hidden 16 --dim_word 16 --max_len 20",
    "gsmn": "--is_sparse --bi_gru --num_block 4 --feat_dim 4 --hid_dim 8",
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Thirty photographs and their captions; a parser stands in for spaCy, which may not be here."""
    source = shared("real/coco_mini/captions_train2017.json")
    content = json.loads(source.read_text())
    content["images"] = content["images"][:30]
    numbers = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in numbers]
    (tmp_path / "captions.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    try:
        parsers.Spacy()
    except InputError:
        monkeypatch.setitem(parse_dependencies.PARSERS, "spacy", Chain)
        monkeypatch.setattr(sentences, "Spacy", Chain)
    return source.parent / "images"


class Chain:
    """Every word depends on the one before it."""

    name = "chain"

    def __init__(self, opt):
        pass

    def __call__(self, captions):
        return [list(range(sum(map(len, caption)))) for caption in captions]


def prepare(photos):
    flags = f"captions.json {WHERE} {VOCAB} --images {photos} --threshold 2 --dev 5 --test 5"
    prepare_captions.main(flags.split())


def extract(photos, more=""):
    network = "--grid shufflenet_v2_x0_5 --no_pretrained --size 64 --workers 0 --dtype float16"
    extract_features.main(f"{WHERE} --images {photos} {network} {more}".split())


def parse(photos):
    parse_dependencies.main(WHERE.split())


def check(flags=""):
    return check_data.main(f"{WHERE} {VOCAB} --no_checksum {flags}".split())


def fit(model):
    folders = f"--logger_name {model} --model_name {model}"
    train.main(f"{SMALL} --device cpu --max_violation --warmup_sum 1 {MODELS[model]} {folders}".split())


def evaluate(model, capsys, report=""):
    """What test.py prints."""
    capsys.readouterr()
    test.main(f"--model_path {model} --split test --device cpu --ranks= {report}".split())
    return capsys.readouterr().out


def build(model):
    search.main(f"--model_path {model} --split test --save_index photos.index --device cpu".split())


def find(capsys):
    """The numbers of the images that search.py finds for a sentence that nobody wrote, and what it prints."""
    capsys.readouterr()
    flags = "--index photos.index --rerank gsmn --shortlist 4 --top 3 --device cpu --query"
    search.main([*flags.split(), "A woman and two dogs look at a red train."])
    said = capsys.readouterr().out
    return [int(number) for number in re.findall(r"image (\d+)", said)], said


def test_from_photographs_to_search_and_report(photos, capsys):
    pytest.importorskip("faiss")
    # out of order: each step says what comes first
    assert "no such folder" in message(extract, photos)
    assert "no such folder" in message(parse, photos)
    assert "no such folder" in message(fit, "vsrn")
    prepare(photos)
    for model in MODELS:
        assert re.search("train_ims.npy: no such file.*tools/extract_features.py", message(fit, model))
    capsys.readouterr()
    assert check("--quick") == 1
    assert "missing: features, for all (tools/extract_features.py)" in capsys.readouterr().out

    extract(photos)
    assert check("--quick --model vsrn") == 0 and check("--quick --model gsmn --is_sparse") == 1
    assert "train_caps.json: no such file; only --is_sparse needs it" in message(fit, "gsmn")
    assert "vsrn" in message(evaluate, "vsrn", capsys)  # not trained yet

    parse(photos)
    assert check() == 0
    written = times()
    capsys.readouterr()
    for step in (prepare, extract, parse):  # again: nothing is left to do
        step(photos)
    said = capsys.readouterr().out
    assert times() == written and said.count("unchanged") == 10 and said.count("complete") == 6

    for model in MODELS:
        assert f"{model}: no such" in message(build, model)
        fit(model)
        said = evaluate(model, capsys)
        for way in ("Image to text", "Text to image"):
            recalls = [float(recall) for recall in re.search(rf"{way}: ([\d.]+) ([\d.]+) ([\d.]+)", said).groups()]
            assert 0 <= recalls[0] <= recalls[1] <= recalls[2] == 100  # ten places for five images

    assert "photos.index: no such file" in message(find, capsys)
    assert "one vector" in message(build, "gsmn")
    build("vsrn")
    found, said = find(capsys)
    assert len(set(found)) == 3 and set(found) <= set(range(5))
    names = Path("data/mine_precomp/test_imagename.txt").read_text().split()
    assert all(names[number] in said for number in found)
    extract(photos, "--split test --size 96 --overwrite")
    assert "photos.index" in message(find, capsys)

    evaluate("gsmn", capsys, f"--report report --images {photos}")
    assert Path("report/index.html").exists() and len(list(Path("report").rglob("*.jpg"))) == 5


def times():
    return {path: path.stat().st_mtime_ns for path in Path("data").rglob("*")}
