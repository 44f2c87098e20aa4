"""VSRN's caption model against its literal definition: every step unrolled, every caption searched."""

import itertools

import pytest
import torch
from plain import literal_log_probs, literal_start, literal_step

from modules.caption_model import END, PAD, START, CaptionModel

B, R, VOCAB, WIDTH, MAX_LEN = 5, 4, 13, 6, 9
VARIANTS = [(rnn, both) for rnn in ("gru", "lstm") for both in (False, True)]


def make(rnn_type="gru", bidirectional=False, vocab=VOCAB, max_len=MAX_LEN, dropout=0.2, seed=0):
    torch.manual_seed(seed)
    model = CaptionModel(vocab, WIDTH, 7, 5, max_len, rnn_type, bidirectional, dropout).double().eval()
    for parameter in model.parameters():  # far from zero, so that no term can be forgotten
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def batch(lengths, max_len=MAX_LEN, seed=1):
    """Regions, labels and masks as the data layer makes them; lengths count <start> and <end>."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(len(lengths), R, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.zeros(len(lengths), max_len + 1, dtype=torch.int64)
    masks = torch.zeros(len(lengths), max_len + 1, dtype=torch.float64)
    for b, n in enumerate(lengths):
        labels[b, :n] = torch.randint(4, VOCAB, (n,), generator=generator)
        labels[b, 0], labels[b, n - 1] = START, END
        masks[b, : n + 1] = 1
    return regions, labels, masks


def gradients(loss, model, regions):
    return torch.autograd.grad(loss, [regions, *model.parameters()])


@pytest.mark.parametrize("rnn_type, bidirectional", VARIANTS)
@pytest.mark.parametrize("lengths", [[3, 9, 2, 5, 9], [4, 3, 2, 4, 3], [2], [10, 10]])
def test_loss_and_gradients_equal_the_full_unrolling(rnn_type, bidirectional, lengths):
    model = make(rnn_type, bidirectional)
    regions, labels, masks = batch(lengths)
    regions.requires_grad_()
    literal = -(literal_log_probs(model, regions, labels) * masks[:, 1:-1]).sum() / len(lengths)
    loss = model(regions, labels, masks)
    torch.testing.assert_close(loss, literal, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(loss, model, regions), gradients(literal, model, regions)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_any_mask_is_obeyed():
    model = make()
    regions, labels, masks = batch([9, 4, 6])
    masks[0, 3:5], masks[1], masks[2, 2] = 0, 0, 0.25  # holes, a caption without any word, a weight
    literal = -(literal_log_probs(model, regions, labels) * masks[:, 1:-1]).sum() / 3
    torch.testing.assert_close(model(regions, labels, masks), literal, rtol=1e-12, atol=0)
    assert model(regions, labels, masks * 0) == 0


def test_nothing_is_computed_that_the_mask_discards():
    model = make()
    regions, labels, masks = batch([3, 5, 2])
    steps, rows = [], []
    model.decoder.attention.register_forward_hook(lambda _, inputs, __: steps.append(len(inputs[0])))
    model.decoder.out.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    model(regions, labels, masks)
    assert steps == [3, 3, 2, 1, 1]  # one step per word read, one more for the pad after <end>
    assert sum(rows) == masks[:, 1:-1].sum()


def test_dropout_acts_on_the_linear_layer_and_on_word_and_context():
    model = make(dropout=0.5).train()
    regions, labels, masks = batch([6, 4, 5])
    seen = []
    for module in (model.encoder.dropout, model.decoder.dropout):
        module.register_forward_hook(lambda m, inputs, out: seen.append((out == 0).double().mean().item()))
    losses = {model(regions, labels, masks).item() for _ in range(40)}
    assert len(losses) == 40
    assert abs(sum(seen) / len(seen) - 0.5) < 0.05
    per_forward = len(seen) // 40
    assert per_forward == 1 + 1 + 6  # the linear layer, all words, and the context at each step
    model.eval()
    assert model(regions, labels, masks) == model(regions, labels, masks)


def literal_greedy(model, regions):
    """One image: the most probable word, again and again."""
    memory, state = literal_start(model, regions)
    ids, total, word = [], 0.0, START
    while len(ids) < model.max_len - 1 and word != END:
        log_p, state = literal_step(model, torch.tensor([word]), state, memory)
        log_p[:, [PAD, START]] = -torch.inf
        word = log_p.argmax().item()
        ids.append(word)
        total += log_p[0, word].item()
    return ids, total


def score_of(model, regions, ids):
    """The plain sum of log-probabilities of one caption of one image."""
    labels = torch.tensor([[START, *ids, PAD]])
    return literal_log_probs(model, regions, labels).sum().item()


@pytest.mark.parametrize("rnn_type, bidirectional", VARIANTS)
def test_beam_of_one_is_greedy(rnn_type, bidirectional):
    ends = set()
    for seed in range(4):
        model = make(rnn_type, bidirectional, seed=seed)
        regions = batch([2] * B)[0]
        for b, (ids, score) in enumerate(model.decode(regions)):
            expected, total = literal_greedy(model, regions[b : b + 1])
            assert ids == expected
            assert score == pytest.approx(total, rel=1e-12)
            ends.add(ids[-1] == END)
    assert ends == {True, False}  # captions that end and captions that are cut


@pytest.mark.parametrize("rnn_type, bidirectional", VARIANTS)
def test_wide_beam_finds_the_best_of_all_captions(rnn_type, bidirectional):
    vocab, max_len, words = 6, 4, [END, 3, 4, 5]
    everything = [[*body, END] for n in range(3) for body in itertools.product(words[1:], repeat=n)]
    everything += [list(body) for body in itertools.product(words[1:], repeat=3)]
    for seed in range(2):
        model = make(rnn_type, bidirectional, vocab, max_len, seed=seed)
        regions = batch([2] * 3, max_len, seed=seed)[0]
        for b, (ids, score) in enumerate(model.decode(regions, beam=len(everything))):
            scores = [score_of(model, regions[b : b + 1], caption) for caption in everything]
            best = max(range(len(scores)), key=scores.__getitem__)
            assert ids == everything[best]
            assert score == pytest.approx(scores[best], rel=1e-12)
