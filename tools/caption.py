"""Write captions for images of a split with the caption model inside a checkpoint of VSRN.

    python tools/caption.py --model_path runs/flickr_VSRN/model_best.pth.tar --split test --image 0 17 --beam 3

Released checkpoints have no caption model; those of train.py --model vsrn do.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoint
import data
from evaluation import load_model
from files import InputError, run
from options import default_device, device
from vocab import END


def captioner(path, **overrides):
    """A checkpoint -> (model in evaluation mode, opt, vocabulary); InputError where it cannot write captions."""
    saved = checkpoint.load_checkpoint(path)
    if not saved.get("caption_model"):
        raise InputError(
            f"{path}: a checkpoint of {saved['opt'].model} without a caption model; train one on region "
            "features with train.py --model vsrn (released checkpoints have none)"
        )
    model, opt, vocab = load_model(path, **overrides)
    model.caption_model.load_state_dict(saved["caption_model"])
    return model, opt, vocab


@torch.no_grad()
def write_captions(model, dataset, vocab, images, beam):
    """Image numbers -> [(caption, its log-probability)]."""
    for g in images:
        if not 0 <= g < dataset.n_images:
            raise InputError(f"--image {g}: the split {dataset.split} has images 0 to {dataset.n_images - 1}")
    features = torch.stack([dataset.image(g) for g in images]).to(model.device)
    written = model.caption_model.decode(model.img_enc(features)[1], beam)
    return [(" ".join(vocab.idx2word[i] for i in ids if i != END), score) for ids, score in written]


def parse(arguments=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model_path", required=True, help="checkpoint written by train.py --model vsrn")
    parser.add_argument("--data_path", help="folder of the data sets (default: the checkpoint's)")
    parser.add_argument("--data_name", help="data set (default: the checkpoint's)")
    parser.add_argument("--vocab_path", help="folder of the vocabulary (default: inside the checkpoint)")
    parser.add_argument("--split", default="test", help="train, dev, test or testall (default: test)")
    parser.add_argument("--image", type=int, nargs="+", default=[0], help="numbers of the images, from 0")
    parser.add_argument("--beam", type=int, default=3, help="captions kept while searching; 1 is greedy (default: 3)")
    parser.add_argument("--device", default=default_device(), type=device, help="cpu, cuda, cuda:1, ...")
    opt = parser.parse_args(arguments)
    if opt.beam < 1:
        parser.error("--beam must be 1 or more")
    return opt


def main(arguments=None):
    flags = parse(arguments)
    overrides = {name: getattr(flags, name) for name in ("data_path", "data_name", "vocab_path", "device")}
    model, opt, vocab = captioner(flags.model_path, **overrides)
    dataset = data.open_split(flags.split, opt.data_name, vocab, opt)
    written = write_captions(model, dataset, vocab, flags.image, flags.beam)
    people = dataset.captions
    for g, (caption, score) in zip(flags.image, written):
        print(f"image {g}: {caption}   (log-probability {score:.2f})")
        for i in range(data.CAPTIONS_PER_IMAGE * g, data.CAPTIONS_PER_IMAGE * (g + 1)):
            print(f"    people wrote: {people[i]}")


if __name__ == "__main__":
    run(main)
