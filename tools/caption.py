"""Write captions for images of a split with the caption model inside a checkpoint of VSRN.

    python tools/caption.py --model_path runs/flickr_VSRN/model_best.pth.tar --split test --image 0 17 --beam 3

Released checkpoints have no caption model; those of train.py --model vsrn do.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

from checkpoints.evaluation_options import add_override_flags, existing, overrides_of
from files.errors import InputError
from runtime.commandline import Parser, whole
from vocab import END


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--model_path", type=existing, required=True, help="checkpoint of train.py --model vsrn")
    add_override_flags(parser)
    parser.add_argument("--image", type=whole(0), nargs="+", default=[0], help="numbers of the images, from 0")
    parser.add_argument("--beam", type=whole(), default=3, help="captions kept while searching; 1 is greedy")
    flags = parser.parse_args(arguments)
    import torch  # which --help does not need

    from checkpoints.loading import open_checkpoint, trained_model
    from tools.searching.collection import open_collection

    loaded, opt, vocab = open_checkpoint(flags.model_path, overrides_of(flags))
    model, dataset = trained_model(loaded, opt, flags.model_path), open_collection(flags.split, opt, vocab)
    if "caption_model" not in loaded["further"]:
        raise InputError(
            f"{flags.model_path}: a checkpoint of {opt.model} without a caption model, as released ones are; "
            "train.py --model vsrn trains one on region features"
        )
    if max(flags.image) >= dataset.n_images:
        raise InputError(f"--image {max(flags.image)}: {dataset.split} has images 0 to {dataset.n_images - 1}")
    features = torch.stack([dataset.image(g) for g in flags.image]).to(model.device)
    with torch.no_grad():
        written = model.caption_model.decode(model.img_enc(features)[1], flags.beam)
    for g, (ids, score) in zip(flags.image, written):
        caption = " ".join(vocab.idx2word[i] for i in ids if i != END)
        print(f"image {g}: {caption}   (log-probability {score:.2f})")
        for i, text in enumerate(dataset.captions or ()):
            if dataset.image_of(i) == g:
                print(f"    people wrote: {text}")


if __name__ == "__main__":
    run(main)
