"""What tests/test_systems.py runs in processes of its own: commands that know toy.py's system, and a loss."""

import torch
import toy  # noqa: F401, adds the system to the table
from tiny import SMALL, same_state
from torch import nn

import data
import test
import test_stack
import train
from model import build_model
from modules.losses import Loss
from runtime import distributed
from runtime.batches import with_shares
from systems.options import train_options
from systems.table import LOSSES
from tools import search
from training import global_batch
from training.health import GuardedAdam
from vocab import load_vocab

LOSSES["infonce"] = "with_toy:InfoNCE"


class InfoNCE(Loss):
    """Cross entropy over rows and columns, with a learnt temperature."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, scores, excluded=None):
        logits, true = scores / self.temperature, torch.arange(len(scores))
        return nn.functional.cross_entropy(logits, true) + nn.functional.cross_entropy(logits.t(), true)


def flags(tiny, folder, *more):
    places = f"--logger_name {folder}/log --model_name {folder}/ck --model toy --loss infonce"
    return [*tiny.args, *SMALL.split(), *places.split(), *more]


def train_with(*arguments):
    train.main([*map(str, arguments)])


def compare(a, b):
    same_state(a, b)


def evaluate_all(tiny, toy_path, gsmn_path, folder):
    """Every command that reads a checkpoint, on the toy's."""
    own = [*tiny.args[:6], "--device", "cpu"]
    test.main(["--model_path", toy_path, *own, "--ranks", f"{folder}/ranks", "--report", f"{folder}/report"])
    test_stack.main(["--model_path", toy_path, gsmn_path, *own, "--ranks", "", "--json", f"{folder}/both.json"])
    search.main(["--model_path", toy_path, *own, "--split", "test", "--query", "a red dog"])


def first_gradients(tiny, folder, *more):
    """The gradient's norm of the first steps and the last temperature, written by the main process."""
    with distributed.process_group():
        opt = train_options(flags(tiny, folder, *more))[0]
        vocab = load_vocab(opt.vocab_path, opt.data_name)
        opt.vocab_size = len(vocab)
        loader, _ = data.get_loaders(opt.data_name, vocab, 30, 0, opt, distributed.size(), distributed.rank())
        train.seed_everything(3)
        model = build_model(opt).double()
        replica, optimizer = global_batch.training_module(model, opt.accumulate), GuardedAdam(model.parameters(), 0.01)
        norms = []
        for batch in with_shares(loader):
            figures = train.train_step(replica, optimizer, batch._replace(images=batch.images.double()), 2.0)
            norms.append(figures["grad_norm"].item())
        if distributed.is_main():
            torch.save([*norms, model.criterion.temperature.item()], f"{folder}.norms")
