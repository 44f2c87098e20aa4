"""Words and ids: the same tokens and the same vocabulary everywhere, and nothing but vocabularies read."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import message, shared

import vocab
from files.text import read_captions, read_ids

REPO = Path(__file__).resolve().parents[1]
CAPTIONS = json.loads((REPO / "tests" / "golden" / "captions.json").read_text())
WORDS = [*vocab.SPECIAL, "a", "dog"]


# ---- tokens ----


@pytest.mark.parametrize("example", CAPTIONS, ids=lambda example: example["caption"][:20])
def test_twenty_captions_keep_their_tokens_and_ids(example):
    words = vocab.Vocabulary([*vocab.SPECIAL, *(token for one in CAPTIONS for token in one["tokens"].split())])
    assert vocab.tokenize(example["caption"]) == example["tokens"].split()
    assert vocab.encode(example["caption"], words) == example["ids"]


def test_words_not_known_become_unk():
    words = vocab.Vocabulary(WORDS)
    assert len(words) == words.idx == 6 and words("cat") == 3
    assert vocab.encode("A cat and a dog", words) == [1, 4, 3, 3, 4, 5, 2]


def test_ids_equal_those_made_for_flickr30k():
    words = vocab.load_vocab(shared("real/vocab"), "f30k_precomp")
    captions = read_captions(shared("real/f30k_precomp/test_caps.txt"))
    expected = list(read_ids(shared("real/f30k_precomp/test_precaps_stan.txt"), len(words)))
    some = range(0, len(captions), 7)
    assert [vocab.encode(captions[i], words) for i in some] == [expected[i] for i in some]


# ---- building ----


def test_a_vocabulary_holds_frequent_words_in_the_order_seen(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "train_caps.txt").write_text("The dog .\nthe cat .\nthe bird\n")
    (folder / "dev_caps.txt").write_text("a dog\n")
    words = vocab.build_vocab(tmp_path, "x", threshold=2)
    assert list(words.word2idx) == [*vocab.SPECIAL, "the", "dog", "."]
    assert words.idx2word == dict(enumerate(words.word2idx))


def test_the_command_writes_the_same_file_whatever_the_hash_seed(tiny_data, monkeypatch):
    """As a program, which needs no torch, and in this process, whose hashes of texts are others."""
    (tiny_data.folder / "torch.py").write_text("raise ImportError('vocab.py needs no torch')")
    flags = ["--data_path", tiny_data.data_path, "--data_name", tiny_data.data_name, "--vocab_path", "again"]
    done = subprocess.run(
        [sys.executable, REPO / "vocab.py", *flags],
        cwd=tiny_data.folder,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(tiny_data.folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "again/tiny_precomp_vocab.json: " in done.stdout
    assert "250/250" not in done.stderr  # a progress bar is for terminals
    build(monkeypatch, tiny_data, "--overwrite")
    first, again = (
        Path(folder, "tiny_precomp_vocab.json") for folder in (tiny_data.vocab_path, tiny_data.folder / "again")
    )
    assert first.read_bytes() == again.read_bytes() and vocab.deserialize_vocab(first)("dog") > vocab.UNK


def test_missing_files_are_told(tiny_data, monkeypatch):
    (tiny_data.folder / "dev_caps.txt").unlink()
    assert "dev_caps.txt: no such file" in message(build, monkeypatch, tiny_data)
    tiny_data.data_name = "other"
    assert "has: tiny_precomp" in message(build, monkeypatch, tiny_data)


@pytest.mark.slow
def test_flickr8k_captions_give_the_published_words():
    ours = vocab.build_vocab(shared("real/flickr8k_precomp").parent, "flickr8k_precomp")
    assert ours.word2idx.keys() == vocab.load_vocab(shared("real/vocab"), "f8k_precomp").word2idx.keys()
    assert ours.word2idx == vocab.load_vocab(shared("real/vocab"), "flickr8k_precomp").word2idx


# ---- files ----


def test_a_written_vocabulary_reads_back(tmp_path):
    words = vocab.Vocabulary([*WORDS, "çà", "n't"])
    vocab.serialize_vocab(words, tmp_path / "x.json")
    read = vocab.deserialize_vocab(tmp_path / "x.json")
    assert (read.word2idx, read.idx2word, read.idx) == (words.word2idx, words.idx2word, 8)
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("module", [b"__main__", b"vocabulary.of.others"])
def test_a_pickle_of_python_2_reads(tmp_path, module):
    # special words are byte strings, the others unicode
    words = [word.encode() for word in [*vocab.SPECIAL, "café"]]
    texts = [*(b"U%c%s" % (len(word), word) for word in words[:4]), b"X\5\0\0\0" + words[4]]
    forth = b"".join(b"%sK%c" % (text, i) for i, text in enumerate(texts))
    back = b"".join(b"K%c%s" % (i, text) for i, text in enumerate(texts))
    state = b"}(U\x08word2idx}(%suU\x08idx2word}(%suU\x03idxK\x05u" % (forth, back)
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02c%s\nVocabulary\n)\x81%sb." % (module, state))
    assert list(vocab.deserialize_vocab(tmp_path / "x.pkl").word2idx) == [*vocab.SPECIAL, "café"]


def test_published_vocabularies_read_and_agree():
    folder = shared("real/vocab")
    read = {path.name.replace("_precomp_vocab", ""): vocab.deserialize_vocab(path) for path in folder.iterdir()}
    assert read["f30k.json"].word2idx == read["f30k.pkl"].word2idx
    assert [len(read[name]) for name in ("f30k.json", "f8k.pkl", "flickr8k.json")] == [8481, 3178, 3178]
    assert len(vocab.load_vocab(folder, "coco_precomp")) == 11353
    assert len(vocab.load_vocab(folder, "coco_precomp", size=10006)) == 10006
    assert vocab.load_vocab(folder, "f8k_precomp")("dog") > vocab.UNK


def change(**tables):
    """A vocabulary's content with some entries replaced (None: taken away)."""
    words = vocab.Vocabulary(WORDS)
    content = {name: copy.copy(getattr(words, name)) for name in ("word2idx", "idx2word", "idx")}
    for name, entries in tables.items():
        content[name].update(entries) if isinstance(entries, dict) else content.update({name: entries})
    return content


BAD = {
    "not a table": (["a"], "not a vocabulary"),
    "without idx": ({"word2idx": {}, "idx2word": {}}, "not a vocabulary"),
    "list of words": (change(word2idx=["a"]), "tables"),
    "gap": (change(word2idx={"a": 7}), "id 4"),
    "twice the same id": (change(word2idx={"a": 5}), "id 4"),
    "text for an id": (change(word2idx={"a": "4"}), "id 4"),
    "no <unk>": (change(word2idx={"<unk>": 4, "a": 3}), "id 3 is 'a'"),
    "special words later": (change(word2idx={"<pad>": 4, "a": 0}, idx2word={4: "<pad>", 0: "a"}), "id 0 is 'a'"),
    "tables differ": (change(idx2word={4: "cat"}), "id 4 is 'a' in word2idx and 'cat'"),
    "too many ids": (change(idx2word={6: "cat"}), "id 6"),
    "wrong count": (change(idx=7), "idx must be 6"),
}


def written(content, path):
    path.write_bytes(pickle.dumps(content, 2) if path.suffix == ".pkl" else json.dumps(content).encode())
    return path


@pytest.mark.parametrize("kind", ["json", "pkl"])
@pytest.mark.parametrize("content", [change(), change()["word2idx"]], ids=["three tables", "one table"])
def test_plain_tables_are_vocabularies(tmp_path, content, kind):
    assert list(vocab.deserialize_vocab(written(content, tmp_path / f"x.{kind}")).word2idx) == WORDS


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("kind", ["json", "pkl"])
def test_bad_vocabularies_are_refused(tmp_path, case, kind):
    content, text = BAD[case]
    said = message(vocab.deserialize_vocab, written(content, tmp_path / f"x.{kind}"))
    assert said.startswith(f"{tmp_path / 'x'}.{kind}: ") and text in said


def build(monkeypatch, tiny, *flags):
    where = ["--data_path", tiny.data_path, "--vocab_path", tiny.vocab_path, "--data_name", tiny.data_name]
    monkeypatch.setattr(sys, "argv", ["vocab.py", *where, *flags])
    vocab.main()


@pytest.mark.parametrize("ending", ["json", "pkl"])
def test_a_vocabulary_is_not_lost(tiny_data, monkeypatch, capsys, ending):
    """Neither overwritten, nor hidden behind a new .json."""
    path = Path(tiny_data.vocab_path) / f"{tiny_data.data_name}_vocab.json"
    path.unlink()
    build(monkeypatch, tiny_data)
    built = path.read_bytes()
    build(monkeypatch, tiny_data)  # the same again
    path.unlink()
    written(change()["word2idx"], path.with_suffix(f".{ending}"))
    there = {file: file.read_bytes() for file in path.parent.iterdir()}
    said = message(build, monkeypatch, tiny_data)
    assert f"vocab.{ending}: " in said and "--overwrite" in said
    assert there == {file: file.read_bytes() for file in path.parent.iterdir()}
    build(monkeypatch, tiny_data, "--overwrite")
    assert path.read_bytes() == built


def test_no_vocabulary_of_printed_bytes(tiny_data, monkeypatch):
    for split in ("train", "dev"):
        path = tiny_data.folder / f"{split}_caps.txt"
        path.write_text("".join(f"{line.encode()!r}\n" for line in path.read_text().splitlines()))
    said = message(build, monkeypatch, tiny_data, "--overwrite")
    assert "train_caps.txt: " in said and "b'...'" in said


@pytest.mark.parametrize(
    "captions, fault",
    [
        (["A dog .", "b is a letter"], None),
        (["b'A dog .'", 'b"it\'s red"', "b'c'"], "captions are written as b'...'"),
        (["一只棕色的狗在草地上奔跑。"], "1.0 words a caption"),
        (["一只 棕色 的 狗 在 草地 上 奔跑 。"], None),
        (["สุนัขสีน้ำตาลวิ่งบนสนามหญ้า a"], "2.0 words a caption"),
        (["สุนัข สีน้ำตาล วิ่ง บน สนามหญ้า"], None),
        (["dog", "cat", "a car"], None),
        (["dog", "cat", "brown_dog_on_grass"], "1.0 words a caption"),
        (["ein Hündchen läuft", "Собака бежит по траве"], None),
        ([], None),
    ],
)
def test_faults_of_captions(captions, fault):
    found = vocab.fault_of_captions(captions)
    assert found is None if fault is None else found.startswith(fault)


def test_the_vocabulary_of_the_wanted_size_is_found(tmp_path):
    assert "x_vocab.json: no such file" in message(vocab.load_vocab, tmp_path, "x")
    vocab.serialize_vocab(vocab.Vocabulary(WORDS), tmp_path / "x_vocab.json")
    (tmp_path / "x_vocab.pkl").write_bytes(pickle.dumps(vocab.Vocabulary([*WORDS, "cat"]), 2))
    assert [len(vocab.load_vocab(tmp_path, "x", size)) for size in (None, 6, 7)] == [6, 6, 7]
    assert "8 are needed" in message(vocab.load_vocab, tmp_path, "x", 8)
    assert len(vocab.load_vocab(tmp_path, "other", 7, trained_on="x")) == 7
