"""How fast this machine computes: similarity, training step, encoding, ranking, beside two yardsticks.

    python tools/benchmark.py                     # a minute and a half on two idle cores
    python tools/benchmark.py --images 256 --captions 1280 --large_batch 256 --rank_images 5000
    python tools/benchmark.py --testall 64        # memory of evaluating COCO 5K, nothing else; some minutes
    python tools/benchmark.py --device cuda --json card.json --markdown card.md       # a GPU: less than ten minutes

"bare" is the matrix product that every implementation needs, all regions times all words at full width, timed right
before each measurement; "literal" is the definition in modules/literal.py, caption by caption or step by step, like the
published code.  Random unit vectors, captions of 5 to 30 words, mean about 12.4.  docs/performance.md.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runtime.start import run

import torch

import data
import evaluation
import model
from files.writing import atomic_write, check_writable
from modules import (
    cpu_kernel,
    literal,
)
from runtime.commandline import Parser, positive
from runtime.devices import device
from systems.options import defaults
from tools.measuring import gpu, timing, training
from tools.measuring.random_data import VOCABULARY, caption_lengths, embeddings
from tools.measuring.timing import HEADER, measure, memory, seconds, stage


def options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--images", default=128, type=int, help="images of the similarity")
    add("--captions", default=640, type=int, help="captions of the similarity")
    add("--batch_size", default=64, type=int, help="pairs of the training step")
    add("--large_batch", default=0, type=int, metavar="B", help="a second, larger training step, as 256")
    add("--regions", default=36, type=int, help="regions of an image")
    add("--embed_size", default=1024, type=int, help="width of the embeddings")
    add("--num_block", default=16, type=int, help="blocks of GSMN")
    add("--rank_images", default=1000, type=int, help="images that are ranked, with five captions each")
    add("--processes", default=0, type=int, metavar="N", help="training with one process and with N (half a minute)")
    add(
        "--testall",
        default=0,
        type=int,
        metavar="I",
        help="memory of evaluating COCO's 5,000 images and 25,000 captions, of which the similarity of I images",
    )
    add("--repeat", default=3, type=int, help="measurements of each, of which the best counts")
    add("--threads", default=torch.get_num_threads(), type=int, help="threads of torch and the kernel")
    add("--busy", action="store_true", help="the machine has other work: count one thread's processor time")
    add("--device", default="cpu", type=device, help="cpu, or cuda for the report of a GPU, whose sizes are fixed")
    add("--minutes", default=9.5, type=positive, help="cuda: time limit; the report names what it leaves out")
    add("--json", metavar="FILE", help="cuda: write the report as JSON")
    add("--markdown", metavar="FILE", help="cuda: write the report as tables for docs/performance.md")
    add("--sim_memory", default=256, type=float, metavar="MB", help="memory for the similarity")
    return parser.parse_args(argv)


def gsmn(opt, **changes):
    """A model of random weights; width of the features and vocabulary as with Flickr30K."""
    torch.manual_seed(0)
    flags = {
        "vocab_size": VOCABULARY, "embed_size": opt.embed_size, "bi_gru": True, "num_block": opt.num_block,
        "feat_dim": opt.num_block, "lambda_softmax": 20.0, "sim_memory": opt.sim_memory,
    }  # fmt: skip
    return model.GSMN(SimpleNamespace(**defaults("gsmn") | flags | changes)).to(opt.device)


def bare_product(regions, words, lengths):
    words = torch.cat([row[:n] for row, n in zip(words, lengths)]).t()
    regions = regions.flatten(0, 1)
    return lambda: regions @ words


def literal_seconds(net, regions, words, boxes, lengths, backward=False):
    """The literal definition for a few captions, and from that for all."""
    few = range(0, len(lengths), max(1, len(lengths) // 4))
    plain = [words[c, : lengths[c]] for c in few]

    def task():
        scores = sum(literal.literal_scores(net, regions, plain, boxes, [None] * len(plain)))
        if backward:
            scores.sum().backward()

    return seconds(task) * sum(lengths) / sum(map(len, plain))


def similarity(opt):
    regions, words, boxes, lengths = embeddings(opt, opt.images, opt.captions)
    bare = bare_product(regions, words, lengths)
    print(f"\nSimilarity without gradients, {opt.images} images x {opt.captions} captions\n{HEADER}")
    measure("bare product", bare, opt.repeat)
    each = None
    for propagation in ("self", "neighbors"):
        net = gsmn(opt, propagation=propagation)
        each = each or literal_seconds(net, regions, words, boxes, lengths)
        measure(propagation, lambda: net.forward_sim(regions, words, boxes, None, lengths), opt.repeat, bare, each)  # noqa: B023
    few = [regions[:32], words[:64], boxes[:32], None, lengths[:64]]
    net, bare = gsmn(opt), bare_product(few[0], few[1], few[4])
    kernel, cpu_kernel.kernel = cpu_kernel.kernel, lambda *_: None
    measure("self, without the kernel, 32 x 64", lambda: net.forward_sim(*few), 1, bare)
    cpu_kernel.kernel = kernel


def training_step(opt, batch):
    regions, words, boxes, lengths = embeddings(opt, batch, batch)
    bare = no_grad(bare_product(regions, words, lengths))
    print(f"\nTraining step (similarity, loss, backward), batch of {batch}\n{HEADER}")
    measure("bare product", bare, 5 * opt.repeat)
    for x in (regions, words):
        x.requires_grad_()
    each = None
    for propagation in ("self", "neighbors"):
        net = gsmn(opt, propagation=propagation)
        each = each or literal_seconds(net, regions, words, boxes, lengths, backward=True)

        def step():
            regions.grad = words.grad = None
            net.zero_grad()  # noqa: B023
            net.forward_loss(net.forward_sim(regions, words, boxes, None, lengths)).backward()  # noqa: B023

        for hardest in (False, True):
            net.criterion.max_violation = hardest
            name = f"{propagation}, {'hardest' if hardest else 'all'} negatives"
            measure(name, step, 2 * opt.repeat, bare, each)


def no_grad(task):
    def run():
        with torch.no_grad():
            task()

    return run


def encoding(opt):
    net = gsmn(opt).eval()
    images = torch.randn(100, opt.regions, 2048, device=opt.device)
    ids = torch.randint(4, VOCABULARY, (500, 13), device=opt.device)
    print(f"\nEncoding, 100 images and 500 captions of 13 words\n{HEADER}")
    with torch.no_grad():
        measure("images", lambda: net.img_enc(images), opt.repeat)
        measure("captions, in batches of 128", lambda: [net.txt_enc(x, [13] * len(x)) for x in ids.split(128)], 1)


def ranking(opt):
    sims = np.random.default_rng(0).normal(size=(opt.rank_images, 5 * opt.rank_images)).astype(np.float32)
    print(f"\nRanking, {sims.shape[0]} images x {sims.shape[1]} captions\n{HEADER}")
    measure("image to text", lambda: evaluation.i2t(sims), 1)
    measure("text to image", lambda: evaluation.t2i(sims), 1)


def coco(opt, folder, images=5000):
    """Loader of a split as large as COCO's testall, in files."""
    path, rng = Path(folder) / "coco_precomp", np.random.default_rng(0)
    path.mkdir()
    features = np.lib.format.open_memmap(path / "testall_ims.npy", "w+", np.float32, (images, opt.regions, 2048))
    for i in range(0, images, 100):
        rng.random(dtype=np.float32, out=features[i : i + 100])
    del features
    np.save(path / "testall_ims_bbx.npy", rng.random((images, opt.regions, 4), np.float32))
    np.save(path / "testall_ims_size.npy", np.ones(images, [("image_w", "f4"), ("image_h", "f4")]))
    words = [rng.integers(4, VOCABULARY, n) for n in caption_lengths(5 * images)]
    (path / "testall_precaps_stan.txt").write_text("".join(",".join(map(str, ids)) + "\n" for ids in words))
    flags = SimpleNamespace(data_path=folder, img_dim=2048)
    return data.get_test_loader("testall", "coco_precomp", range(VOCABULARY), opt.batch_size, 0, flags)


def testall(opt):
    """What testall.py does with COCO, but for most of the similarities."""
    net, some = gsmn(opt, propagation="neighbors").eval(), slice(opt.testall)
    with tempfile.TemporaryDirectory() as folder:
        loader = coco(opt, folder)
        print(f"\nCOCO's testall: 5,000 images, 25,000 captions; MB: peak so far\n{HEADER}")
        before = memory(reset=True)
        encoded = stage("encoding", lambda: evaluation.encode_data(net, loader), before)
        sims = stage("matrix", lambda: np.random.default_rng(0).random((5000, 25000), np.float32), before)
        few = encoded._replace(img_embs=encoded.img_embs[some], bboxes=encoded.bboxes[some])
        stage(f"similarity of {opt.testall} images",
              lambda: evaluation.shard_xattn(net, *few, sims=sims[some]), before)  # fmt: skip
        stage("ranking", lambda: evaluation.metrics(sims), before)


def vsrn(opt):
    """VSRN at its published sizes: matching is one product; the caption loss beside unrolling all 59 steps."""
    images, ids = torch.randn(100, opt.regions, 2048, device=opt.device), torch.randint(4, 8500, (500, 13))
    flags = {"data_name": "f30k_precomp", "vocab_size": 8500, "max_violation": True, "input_dropout_p": 0.0}
    torch.manual_seed(0)
    net = model.build_model(SimpleNamespace(**defaults("vsrn") | flags)).to(opt.device).eval()
    print(f"\nVSRN: encoding 100 images and 500 captions of 13 words, matching 1000 x 5000\n{HEADER}")
    all_images, all_captions = torch.randn(1000, 2048, device=opt.device), torch.randn(5000, 2048, device=opt.device)
    with torch.no_grad():
        measure("images", lambda: net.encode_images(images), 1)
        measure("captions", lambda: [net.encode_captions(x, [13] * len(x)) for x in ids.split(128)], 1)
        measure("matching", lambda: net.forward_sim(all_images, all_captions), 1)
    caption_loss(opt, net)


def caption_loss(opt, net):
    """Forward and backward at batch 128, captions of 5 to 30 words."""
    lengths = caption_lengths(128)
    regions = torch.randn(128, opt.regions, 2048, device=opt.device)
    labels = torch.zeros(128, 61, dtype=torch.int64, device=opt.device)
    masks = torch.zeros(128, 61, device=opt.device)
    for label, mask, n in zip(labels, masks, lengths):
        label[:n], mask[: n + 1] = torch.randint(4, 8500, (n,)), 1

    def every_step():
        log_p = literal.literal_log_probs(net.caption_model, regions, labels)
        (-(log_p * masks[:, 1:-1]).sum() / len(labels)).backward()

    print(f"\nVSRN's caption loss and its gradient, batch of 128, max_len 60, vocabulary 8,500\n{HEADER}")
    each = seconds(every_step)
    loss = lambda: net.caption_loss(regions, labels, masks).backward()  # noqa: E731
    measure("only the steps that count", loss, opt.repeat, None, each)


def gpu_report(opt):
    """The report of a card, to the files that are asked for."""
    for path in filter(None, (opt.json, opt.markdown)):
        check_writable(path)
    report = gpu.measure(opt.device, opt.minutes)
    if opt.json:
        atomic_write(opt.json, lambda file: file.write(json.dumps(report.content(), indent=1).encode()))
    if opt.markdown:
        atomic_write(opt.markdown, lambda file: file.write(report.markdown().encode()))


def main(argv=None):
    opt = options(argv)
    if opt.device != "cpu":
        gpu_report(opt)
        return
    if opt.busy:
        opt.threads, timing.clock = 1, time.process_time
    torch.set_num_threads(opt.threads)
    kernel = cpu_kernel.kernel(opt.num_block, 32)
    print(f"torch {torch.__version__}, {opt.device}, {opt.threads} threads, {'compiled' if kernel else 'no'} kernel")
    if opt.testall:
        testall(opt)
        return
    with torch.no_grad():
        similarity(opt)
    training_step(opt, opt.batch_size)
    if opt.large_batch:
        training_step(opt, opt.large_batch)
    encoding(opt)
    ranking(opt)
    vsrn(opt)
    if opt.processes:
        training.compare(SimpleNamespace(**vars(opt) | {"model": "gsmn", "threads": 1, "steps": 5}))


if __name__ == "__main__":
    run(main)
