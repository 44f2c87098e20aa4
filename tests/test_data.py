"""Files -> batches: what is read, in which order, how it is batched, and what is refused."""

import json
import pickle
import re
import resource
from argparse import Namespace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import dataset_of, make_tiny, message, prepared, shared

import data
import vocab
from files.arrays import read_sizes, released_boxes
from files.text import read_json
from systems.options import completed


def dataset(tiny, split="dev", **more):
    return dataset_of(tiny, split, **more)


def same(a, b):
    """Whether two batches (or tuples of tensors) are equal, all parts."""
    return all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(a, b, strict=True))


def resave(tiny, file, change):
    """Replace an array of the tiny data set by change(array)."""
    array = np.load(tiny.folder / file)
    np.save(tiny.folder / file, change(array))


def expected_boxes(tiny, g):
    w, h = 200 + g, 100 + g
    return np.load(tiny.folder / "dev_ims_bbx.npy")[g] / np.float32([w, h, w, h])


# ---- one item ----


def test_an_item_is_what_the_files_say(tiny_data):
    dev = dataset(tiny_data, is_sparse=True)
    item = dev[17]
    assert len(dev) == 50 and dev.n_images == 10 and dev.im_div == 5 and dev.image_of(17) == 3
    assert torch.equal(item.image, torch.from_numpy(np.load(tiny_data.folder / "dev_ims.npy")[3]))
    assert np.array_equal(item.boxes, expected_boxes(tiny_data, 3)) and item.boxes.dtype == torch.float32
    assert item.caption == vocab.encode(dev.captions[17], dev.vocab)
    assert item.depends == [[i, i + 1] for i in range(len(item.caption) - 2)] and item.id == 17
    assert item.label is None and item.mask is None
    assert all(np.array_equal(dev[17].boxes, expected_boxes(tiny_data, 3)) for _ in range(20))  # however often


@pytest.mark.parametrize("length", range(2, 9))
def test_labels_and_masks_by_hand(length):
    ids = [1, 11, 12, 13, 14, 15, 16, 17][: length - 1] + [2]
    label, mask = data.label_and_mask(ids, max_len=5)
    shown = {2: [1, 2, 0, 0, 0, 0], 3: [1, 11, 2, 0, 0, 0], 4: [1, 11, 12, 2, 0, 0], 5: [1, 11, 12, 13, 2, 0]}
    assert label.tolist() == shown[min(length, 5)]
    assert mask.tolist() == [1] * (min(length, 5) + 1) + [0] * (5 - min(length, 5))


# ---- the reference data ----


def test_gsmn_batch_equals_the_reference():
    folder = shared("golden/gsmn")
    words = vocab.deserialize_vocab(folder / "f30k_precomp_vocab.json")
    opt = completed(Namespace(data_path=folder, img_dim=64, is_sparse=True))
    train = data.PrecompDataset("train", "f30k_precomp", words, opt)
    expected = np.load(folder / "train_dense.npz")
    batch = data.collate([train[i] for i in expected["order"][0].tolist()])
    ours = {"ids": batch.ids, "lengths": batch.lengths, "targets": batch.captions, "images": batch.images}
    for name, array in {**ours, "bboxes": batch.bboxes}.items():
        assert np.array_equal(array, expected[f"batch0_{name}"]), name
    pairs = json.loads((folder / "f30k_precomp" / "train_caps.json").read_text())
    assert batch.depends == [pairs[i] for i in batch.ids]


@pytest.mark.parametrize("data_name", ["f30k_precomp", "coco_precomp"])
def test_vsrn_items_and_batches_equal_the_reference(data_name):
    words = vocab.load_vocab(shared("golden/vsrn/vocab"), data_name)
    opt = completed(Namespace(data_path=shared("golden/vsrn/data"), img_dim=64, model="vsrn", max_len=20))
    expected = read_json(shared(f"golden/vsrn/{data_name}/pipeline.json"))
    for split in ("train", "test"):
        items = [*data.PrecompDataset(split, data_name, words, opt)]
        assert [item.caption for item in items] == expected[split]["target_ids"]
        assert [item.label.tolist() for item in items] == expected[split]["caption_label"]
        assert [item.mask.tolist() for item in items] == expected[split]["caption_mask"]
    expected = np.load(shared(f"golden/vsrn/{data_name}/batch.npz"))
    train = data.PrecompDataset("train", data_name, words, opt)
    batch = data.collate([train[i] for i in expected["batch_order"][0].tolist()])
    ours = {"ids": batch.ids, "lengths": batch.lengths, "targets": batch.captions, "images": batch.images}
    for name, array in {**ours, "caption_labels": batch.labels, "caption_masks": batch.masks}.items():
        assert np.array_equal(array, expected[name]), name
    for order, ordered in zip(expected["batch_order"], expected["batch_order_sorted"]):
        assert data.collate([train[i] for i in order.tolist()]).ids == ordered.tolist()


def test_boxes_equal_the_released_evaluations_bit_for_bit():
    # 2 of the 36 regions of the reference, which the released code made with batches of 16
    golden = np.load(Path(__file__).parent / "golden" / "boxes.npz")
    raw, sizes = golden["boxes"], golden["sizes"]
    assert np.array_equal(released_boxes(raw, sizes, 100, 16), golden["rows"][:20])
    assert np.array_equal(released_boxes(raw, sizes, 100, 16, fold5=True), golden["fold5"])


def test_all_reference_boxes():
    folder = shared("golden/gsmn")
    expected = np.load(folder / "expected_dense.npz")
    words = vocab.deserialize_vocab(folder / "f30k_precomp_vocab.json")
    test = data.PrecompDataset("test", "f30k_precomp", words, completed(Namespace(data_path=folder, img_dim=64)))
    assert np.array_equal(test.boxes, expected["boxes_correct"])
    assert np.array_equal(test.released_boxes(16), expected["quirk_bbox"][:20])
    assert np.array_equal(test.released_boxes(16, fold5=True).reshape(5, 4, 36, 4), expected["fold5_bbox"])
    structured = read_sizes(folder / "f30k_precomp" / "test_ims_size_struct.npy")
    assert np.array_equal(test.sizes, structured)


# ---- features in other forms ----


def test_a_row_for_each_caption_gives_the_same_batches(tiny_data):
    """In the features alone, then in boxes and sizes, too; other types of numbers are in test_odd_input.py."""
    expected = [*data.make_loader(dataset(tiny_data), data.in_order(50, 16), 0)]
    images = [*data.image_loader(dataset(tiny_data), 4)]
    for files in (["ims"], ["ims_bbx", "ims_size"]):
        for file in files:
            resave(tiny_data, f"dev_{file}.npy", lambda x: x.repeat(5, 0))
        dev = dataset(tiny_data)
        assert dev.im_div == 1
        assert all(map(same, expected, data.make_loader(dev, data.in_order(50, 16), 0)))
        assert all(map(torch.equal, images, data.image_loader(dev, 4)))
    assert dev.raw_boxes.shape == (10, 4, 4)


def test_features_are_not_read_whole(tiny_data):
    shape = (5000, 36, 2048)  # 1.5 GB of zeros, a file without blocks
    big = np.lib.format.open_memmap(tiny_data.folder / "train_ims.npy", "w+", np.float32, shape)
    del big
    (tiny_data.folder / "train_precaps_stan.txt").write_text("1,4,2\n" * 25000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train = dataset(tiny_data, "train", boxes="none", img_dim=2048)
    loader = data.make_loader(train, [[0, 12345], [24999]], 0)
    assert [len(batch.ids) for batch in loader] == [2, 1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3  # kilobytes
    assert len(pickle.dumps(train)) < 1e6  # what a worker that is not forked would be sent


@pytest.mark.parametrize("regions, width", [(1, 8), (7, 16)])
def test_any_number_of_regions_and_width(tmp_path, regions, width):
    tiny = make_tiny(tmp_path, regions, width, {"dev": 1})  # one image, too
    batch = next(iter(data.make_loader(dataset(tiny), data.in_order(5, 8), 0)))
    assert batch.images.shape == (5, regions, width) and batch.bboxes.shape == (5, regions, 4)


def test_dev_is_cut_to_its_first_5000_captions(tmp_path):
    tiny = make_tiny(tmp_path, 1, 8, {"dev": 1014})
    dev = dataset(tiny, is_sparse=True)
    assert len(dev) == len(dev.captions) == 5000
    assert dev.n_images == len(dev.boxes) == len(dev.raw_boxes) == 1000
    assert sum(map(len, data.image_loader(dev, 300))) == 1000
    assert sorted(i for batch in data.caption_loader(dev, range(5000), 300) for i in batch.ids) == list(range(5000))
    for file in tiny.folder.glob("dev_*"):
        file.rename(tiny.folder / file.name.replace("dev", "test"))
    assert len(dataset(tiny, "test")) == 5070


# ---- optional files ----


def test_missing_ids_are_made_from_the_captions_and_it_is_said(tiny_data, capsys):
    ready = dataset(tiny_data).tokens
    (tiny_data.folder / "dev_precaps_stan.txt").unlink()
    made = dataset(tiny_data).tokens
    assert "dev_precaps_stan.txt is missing: making the word ids from dev_caps.txt" in capsys.readouterr().err
    assert len(made) == 50 and list(made) == list(ready)


def test_vsrn_reads_captions_only(tiny_data, capsys):
    expected = list(dataset(tiny_data).tokens)
    for ending in ("precaps_stan.txt", "ims_bbx.npy", "ims_size.npy", "caps.json"):
        (tiny_data.folder / f"dev_{ending}").write_text("not read")
    dev = dataset(tiny_data, model="vsrn", max_len=6, is_sparse=True)
    batch = next(iter(data.make_loader(dev, [[3, 4]], 0)))
    assert list(dev.tokens) == expected and dev.boxes is None and dev.depends is None
    assert batch.bboxes is None and batch.depends is None
    assert batch.labels.shape == batch.masks.shape == (2, 7)
    assert batch.labels.dtype == torch.int64 and batch.masks.dtype == torch.float32
    assert "warning" not in capsys.readouterr().err


def test_gsmn_without_boxes_sizes_texts_and_dependencies(tiny_data):
    for ending in ("caps.txt", "ims_bbx.npy", "ims_size.npy", "caps.json"):
        (tiny_data.folder / f"dev_{ending}").unlink()
    dev = dataset(tiny_data, boxes="none")
    batch = next(iter(data.make_loader(dev, [[3, 4]], 0)))
    assert batch.bboxes is None and batch.depends is None and dev.captions is None


CHINESE = ["一只棕色的狗在草地上奔跑。", "两个人在沙滩上踢足球。"] * 25
PRINTED = [repr(text.encode()) for text in ("a red dog .", "a blue car .") for _ in range(25)]


@pytest.mark.parametrize("model", ["gsmn", "vsrn"])
@pytest.mark.parametrize(
    "captions, ids, told",
    [
        (["a zebra there"] * 50, "1,4,3,14,2", "33 % of the words are <unk>"),
        (CHINESE, None, "dev_caps.txt: 1.0 words a caption"),
        (None, "1,4,2", "dev_precaps_stan.txt: 1.0 words a caption"),
        (PRINTED, "1,4,5,6,7,2", "b'...'"),
    ],
)
def test_captions_and_ids_that_look_wrong_are_noticed(tiny_data, capsys, model, captions, ids, told):
    """No reason to refuse them, nor, for captions that cannot be cut into words, to blame the vocabulary."""
    caps, precaps = (tiny_data.folder / f"dev_{ending}.txt" for ending in ("caps", "precaps_stan"))
    for path, lines in ((caps, captions), (precaps, ids and [ids] * 50)):
        path.unlink()
        if lines:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if model == "vsrn" and not captions:
        return  # it reads no ids
    dataset(tiny_data, model=model)
    assert told in capsys.readouterr().err


def test_ids_of_another_vocabulary_are_refused(tiny_data):
    """As many words, other numbers: nothing else would tell."""
    words = vocab.load_vocab(tiny_data.vocab_path, tiny_data.data_name)
    other = vocab.Vocabulary([*vocab.SPECIAL, *reversed([words.idx2word[i] for i in range(4, len(words))])])
    (vocab_file,) = Path(tiny_data.vocab_path).iterdir()
    vocab.serialize_vocab(other, vocab_file)
    said = message(dataset, tiny_data)
    assert said.startswith(str(tiny_data.folder / "dev_precaps_stan.txt")) and "of 50 captions compared 50" in said
    assert "line 1: [1, 4, " in said and "--vocab_path" in said and "rename" in said
    dataset(tiny_data, model="vsrn")  # makes its own ids
    (tiny_data.folder / "dev_precaps_stan.txt").rename(tiny_data.folder / "aside.txt")
    assert dataset(tiny_data).tokens[0] == vocab.encode(dataset(tiny_data).captions[0], other)
    (tiny_data.folder / "aside.txt").rename(tiny_data.folder / "dev_precaps_stan.txt")
    (tiny_data.folder / "dev_caps.txt").unlink()
    dataset(tiny_data)  # nothing to compare with


def test_some_captions_may_have_other_ids(tiny_data):
    """Another tokeniser made them: no reason to refuse the vocabulary."""
    path = tiny_data.folder / "dev_caps.txt"
    captions = path.read_text().splitlines()
    path.write_text("".join(f"{text} somehow\n" if i % 3 == 0 else f"{text}\n" for i, text in enumerate(captions)))
    assert len(dataset(tiny_data)) == 50


def test_published_flickr8k_reads():
    words = vocab.load_vocab(shared("real/vocab"), "flickr8k_precomp")
    opt = completed(Namespace(data_path=shared("real"), img_dim=256, is_sparse=True))
    dev = data.PrecompDataset("dev", "flickr8k_precomp", words, opt)
    batch = next(iter(data.make_loader(dev, data.in_order(5000, 128), 0)))
    assert len(dev) == 5000 and batch.images.shape == (128, 36, 256)
    assert batch.bboxes.min() == 0 and 0.99 < batch.bboxes.max() <= 1.01


# ---- order and batches ----


def batches(n, size, **more):
    return [*data.EpochSampler(n, size, **more)]


def test_every_caption_comes_once_an_epoch_in_an_order_of_seed_and_epoch():
    sampler = data.EpochSampler(103, 10, seed=5)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append([*sampler])
        assert len(sampler) == 11 and [len(batch) for batch in epochs[-1]] == [10] * 10 + [3]
        assert sorted(chain(*epochs[-1])) == list(range(103))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] and batches(103, 10, seed=6) != epochs[0]
    torch.manual_seed(1)
    assert batches(103, 10, seed=5) == epochs[0] and len(batches(103, 10, seed=-1)) == 11
    sampler.set_epoch(1, start_step=4)
    assert [*sampler] == epochs[1][4:] and len(sampler) == 11


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_processes_share_the_same_global_batches(replicas):
    whole = batches(103, 10, seed=1)
    shares = [batches(103, 10, seed=1, replicas=replicas, rank=rank) for rank in range(replicas)]
    assert [[*chain(*parts)] for parts in zip(*shares)] == whole
    assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in zip(*shares))


def test_collate_sorts_stably_and_pads_with_zeros(tiny_data):
    captions = [1, 5, 2], [1, 5, 6, 7, 2], [1, 5, 6, 2], [1, 5, 6, 7, 2]
    items = [data.Item(None, ids, i, None, None, None, None) for i, ids in enumerate(captions)]
    batch = data.collate(items)
    assert batch.ids == [1, 3, 2, 0] and batch.lengths == [5, 5, 4, 3]
    assert batch.captions.tolist() == [[1, 5, 6, 7, 2], [1, 5, 6, 7, 2], [1, 5, 6, 2, 0], [1, 5, 2, 0, 0]]


def test_loaders_do_not_depend_on_workers_nor_touch_the_random_state(tiny_data):
    opt, words = prepared(tiny_data, "--is_sparse", "--seed=3")
    state = torch.get_rng_state()
    runs = []
    for workers in (0, 2):
        train, dev = data.get_loaders(tiny_data.data_name, words, 64, workers, opt)
        train.batch_sampler.set_epoch(1, start_step=1)
        images = data.image_loader(dev.dataset, 4, workers)
        runs.append([*train, *dev, *map(tuple, images), *data.caption_loader(dev.dataset, range(50), 16)])
    assert len(runs[0]) == 3 + 1 + 3 + 4 and len(train) == 4
    assert all(map(same, *runs))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_that_are_not_forked(tiny_data):
    dev = dataset(tiny_data)
    loader = data.image_loader(dev, 5, 1)
    loader.multiprocessing_context = "spawn"
    assert all(map(torch.equal, loader, data.image_loader(dev, 5)))


def test_evaluation_reads_images_and_captions_once(tiny_data):
    dev = dataset(tiny_data, is_sparse=True)
    assert np.array_equal(torch.cat([*data.image_loader(dev, 4)]), dev.images)
    texts = [*data.caption_loader(dev, range(50), 16)]
    lengths = [length for batch in texts for length in batch.lengths]
    assert lengths == sorted(lengths, reverse=True)
    assert len(data.caption_loader(dev, range(50), 16)) == len(texts) == 4
    for batch in texts:
        assert batch.images is None
        for i, ids, length, pairs in zip(batch.ids, batch.captions, batch.lengths, batch.depends):
            assert ids[:length].tolist() == dev.tokens[i] and not ids[length:].any() and pairs == dev.depends[i]


# ---- what is refused ----


def test_a_row_for_each_caption_must_be_the_images(tiny_data):
    """The count alone does not say what rows are: one caption an image, or the list of all images five times."""
    features, pixels, sizes = (np.load(tiny_data.folder / f"dev_{kind}.npy") for kind in ("ims", "ims_bbx", "ims_size"))
    other = np.random.default_rng(0).normal(size=(50, 4, 8)).astype(np.float32)
    damaged = features.repeat(5, 0)
    damaged[12] += 1
    for rows, told in (
        (other, "rows 0 to 4, "),
        (np.tile(features, (5, 1, 1)), "rows 0 to 4, "),
        (damaged, "rows 10 to 14"),
    ):
        np.save(tiny_data.folder / "dev_ims.npy", rows)
        for more in ({}, {"model": "vsrn"}):
            refused(tiny_data, told, "ims.npy", **more)
    np.save(tiny_data.folder / "dev_ims.npy", features)
    for kind, repeated, tiled in (
        ("ims_size", {"ims_bbx": pixels.repeat(5, 0)}, np.tile(sizes, 5)),
        ("ims_bbx", {"ims_size": sizes.repeat(5)}, np.tile(pixels, (5, 1, 1))),
    ):
        for name, rows in {**repeated, kind: tiled}.items():
            np.save(tiny_data.folder / f"dev_{name}.npy", rows)
        refused(tiny_data, "which are of one image, differ", f"{kind}.npy")
        assert dataset(tiny_data, boxes="none").sizes is None


def put(value, *where):
    def change(array):
        array[where] = value
        return array

    return change


ARRAYS = {  # file, change, part of the message
    "other width": ("ims.npy", lambda x: x[:, :, :7], "7 wide, but --img_dim is 8"),
    "integers": ("ims.npy", lambda x: x.astype(int), "int64"),
    "one matrix": ("ims.npy", lambda x: x[0], r"shape \(4, 8\)"),
    "no image": ("ims.npy", lambda x: x[:0], "shape"),
    "ten captions an image": ("ims.npy", lambda x: x[:5], "5 rows of features for 50 captions"),
    "no width": ("ims_size.npy", put((0, 5), 3), "row 3: image size 0 x 5"),
    "fewer sizes": ("ims_size.npy", lambda x: x[:9], "boxes of 10 images, but 9 image sizes"),
    "fewer regions": ("ims_bbx.npy", lambda x: x[:, :3], "boxes of 3 regions"),
    "flat boxes": ("ims_bbx.npy", lambda x: x.reshape(10, 16), r"shape \(10, 16\)"),
    "box of text": ("ims_bbx.npy", lambda x: x.astype("S4"), r"\(images, regions, 4\)"),
    "box outside": ("ims_bbx.npy", put((0, 0, 9, 140), 6, 2), "row 6, region 2: .* outside its image of 206 x 106"),
    "box left of it": ("ims_bbx.npy", put(-60, 0, 0, 0), r"row 0, region 0: box \[-60.0, "),
    "box of NaN": ("ims_bbx.npy", put(np.nan, 1, 0, 0), r"row 1, region 0: box \[nan, "),
}
TEXTS = {  # file, change of its text, or None to remove it, part of the message
    "unknown id": ("precaps_stan.txt", lambda x: x + "1,99,2\n", "line 51: word id 99"),
    "empty ids": ("precaps_stan.txt", lambda x: "\n" + x, "line 1: '' is no list"),
    "not five": ("precaps_stan.txt", lambda x: x.split("\n", 2)[2], "10 rows of features for 48 captions"),
    "no captions": ("precaps_stan.txt", lambda x: "", "10 rows of features for 0 captions"),
    "few pairs": ("caps.json", lambda x: "[]", "dependencies of 0 captions"),
    "broken JSON": ("caps.json", lambda x: x[:-9], "JSON"),
    "fewer texts": ("caps.txt", lambda x: x + "more\n", "51 captions"),
    "empty text": ("caps.txt", lambda x: "a dog\n\n" + x, "line 2: empty caption"),
    "no features": ("ims.npy", None, "no such file; check --data_path"),
    "no boxes": ("ims_bbx.npy", None, "--boxes none"),
    "no sizes": ("ims_size.npy", None, "--boxes none"),
    "no pairs": ("caps.json", None, "--is_sparse"),
}


def refused(tiny, text, file, **more):
    """The data set or its captions are refused in one line that begins with the file."""
    said = message(lambda: dataset(tiny, **{"is_sparse": True, **more}).captions)
    assert said.startswith(str(tiny.folder / f"dev_{file}")) and re.search(text, said), said


@pytest.mark.parametrize("case", [*ARRAYS, *TEXTS])
def test_unusable_files(tiny_data, case):
    file, change, text = (ARRAYS | TEXTS)[case]
    path = tiny_data.folder / f"dev_{file}"
    if case in ARRAYS:
        resave(tiny_data, path.name, change)
    elif change:
        path.write_text(change(path.read_text()))
    else:
        path.unlink()
    refused(tiny_data, text, "ims_bbx.npy" if case == "fewer sizes" else "ims.npy" if "rows of" in text else file)


def test_unknown_data_name_and_split(tiny_data):
    assert "data has: tiny_precomp" in message(lambda: dataset(tiny_data, data_name="other"))
    assert "val_ims.npy: no such file" in message(dataset, tiny_data, "val")


@pytest.mark.parametrize("value, workers", [(np.nan, 0), (np.inf, 2)])
def test_features_that_are_no_numbers_are_named_from_workers_too(tiny_data, workers, value, workers_end):
    resave(tiny_data, "dev_ims.npy", put(value, 6, 1, 2))
    dev = dataset(tiny_data)
    for loader in (data.make_loader(dev, [[1], [31]], workers), data.image_loader(dev, 4, workers)):
        assert message(list, loader).startswith(f"{tiny_data.folder / 'dev_ims.npy'}, row 6: NaN or infinity")
