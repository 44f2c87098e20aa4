import numpy as np
from conftest import shared

import data
import vocab


def options(tiny, **more):
    import argparse
    return argparse.Namespace(data_path=tiny.data_path, img_dim=tiny.img_dim, **more)


def test_tiny_data_set_gives_complete_batches(tiny_data):
    words = vocab.load_vocab(tiny_data.vocab_path, tiny_data.data_name)
    train, dev = data.get_loaders(tiny_data.data_name, words, 16, 0, options(tiny_data, is_sparse=True))
    assert len(train) == 13 and len(dev) == 4
    batch = next(iter(dev))
    assert batch.images.shape == (16, 4, 8) and batch.bboxes.shape == (16, 4, 4)
    assert sorted(batch.ids) == list(range(16))
    assert batch.lengths == sorted(batch.lengths, reverse=True)


def test_gsmn_batch_equals_the_reference():
    folder = shared('golden/gsmn')
    words = vocab.deserialize_vocab(folder / 'f30k_precomp_vocab.json')
    import argparse
    train = data.PrecompDataset('train', 'f30k_precomp', words,
                                argparse.Namespace(data_path=str(folder), img_dim=64, is_sparse=True))
    expected = np.load(folder / 'train_dense.npz')
    batch = data.collate([train[i] for i in expected['order'][0].tolist()])
    for ours, name in ((batch.ids, 'ids'), (batch.lengths, 'lengths'), (batch.captions, 'targets'),
                       (batch.images, 'images'), (batch.bboxes, 'bboxes')):
        assert np.array_equal(ours, expected[f'batch0_{name}']), name
