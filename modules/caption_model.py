"""VSRN's caption model: encoder over the enhanced regions, attention decoder, loss, greedy and beam decoding.

docs/method.md, section 3 ("Caption loss"). The parameter names are those of the released code.
"""

import torch
from torch import nn
from torch.nn import functional as F

from vocab import END, PAD, START

RNNS = {"gru": nn.GRU, "lstm": nn.LSTM}


class RegionEncoder(nn.Module):
    """Regions (B, R, dim_vid) -> memory (B, R, H) and the decoder's first state, a tuple of (B, H)."""

    def __init__(self, dim_vid, dim_hidden, rnn_type, bidirectional, dropout):
        super().__init__()
        self.vid2hid = nn.Linear(dim_vid, dim_hidden)
        self.rnn = RNNS[rnn_type](dim_hidden, dim_hidden, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_normal_(self.vid2hid.weight)

    def forward(self, regions):
        memory, last = self.rnn(self.dropout(self.vid2hid(regions)))
        last = last if isinstance(last, tuple) else (last,)  # LSTM: (hidden, cell)
        return memory, tuple(torch.cat(list(x), dim=-1) for x in last)  # (directions, B, h) -> (B, H)


class Attention(nn.Module):
    """Additive attention, linear2(tanh(linear1([encoder output, hidden]))) with softmax over the regions."""

    def __init__(self, dim):
        super().__init__()
        self.linear1 = nn.Linear(dim * 2, dim)
        self.linear2 = nn.Linear(dim, 1, bias=False)

    def keys(self, memory):
        """The half of linear1 that does not change from step to step: W = [W_enc W_hid]."""
        return F.linear(memory, self.linear1.weight[:, : memory.size(-1)], self.linear1.bias)  # (B, R, H)

    def forward(self, hidden, memory, keys):
        query = F.linear(hidden, self.linear1.weight[:, memory.size(-1) :])  # (B, H)
        energy = self.linear2((keys + query.unsqueeze(1)).tanh_())  # (B, R, 1)
        return (energy.softmax(1).transpose(1, 2) @ memory).squeeze(1)  # (B, H)


class Decoder(nn.Module):
    """One recurrent layer that reads [word, context]; state: (h,) of a GRU, (h, c) of an LSTM."""

    def __init__(self, vocab_size, dim_word, dim, rnn_type, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim_word)
        self.attention = Attention(dim)
        self.rnn = RNNS[rnn_type](dim_word + dim, dim)  # holds the weights; `advance` is one step of it
        self.out = nn.Linear(dim, vocab_size)
        self.dropout = nn.Dropout(dropout)
        self.cell = gru_cell if rnn_type == "gru" else lstm_cell
        nn.init.xavier_normal_(self.out.weight)

    def word_gates(self, words):
        """The words' share of the cell's input, for all words in one product: (N,) -> (N, gates * H)."""
        weight = self.rnn.weight_ih_l0[:, : self.embedding.embedding_dim]
        return F.linear(self.dropout(self.embedding(words)), weight, self.rnn.bias_ih_l0)

    def advance(self, gates, state, memory, keys):
        """One step: the word's gates, the state before it -> the state after it."""
        context = self.dropout(self.attention(state[0], memory, keys))
        gates = gates + F.linear(context, self.rnn.weight_ih_l0[:, self.embedding.embedding_dim :])
        return self.cell(gates, F.linear(state[0], self.rnn.weight_hh_l0, self.rnn.bias_hh_l0), state)

    def word_log_probs(self, hidden, words, rows=512):
        """log p of words (N,) after hidden states (N, H), in parts: N x vocabulary at once is slower."""
        return torch.cat(
            [-F.cross_entropy(self.out(h), w, reduction="none") for h, w in zip(hidden.split(rows), words.split(rows))]
        )

    def unroll(self, words, sizes, state, memory):
        """Teacher forcing; captions are sorted by falling number of steps, step t has the first sizes[t].

        words (sum(sizes),) step by step -> hidden states (sum(sizes), H) in the same order.
        """
        keys, hidden = self.attention.keys(memory), []
        for gates in self.word_gates(words).split(sizes):
            if len(gates) < len(memory):  # captions have ended: the batch shrinks
                memory, keys = memory[: len(gates)], keys[: len(gates)]
                state = tuple(x[: len(gates)] for x in state)
            state = self.advance(gates, state, memory, keys)
            hidden.append(state[0])
        return torch.cat(hidden)


def gru_cell(inputs, recurrent, state):
    """torch's GRU equations on ready-made products, (B, 3H) each."""
    reset_i, update_i, new_i = inputs.chunk(3, dim=-1)
    reset_h, update_h, new_h = recurrent.chunk(3, dim=-1)
    new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_h) * new_h)
    return (torch.lerp(new, state[0], torch.sigmoid(update_i + update_h)),)


def lstm_cell(inputs, recurrent, state):
    """torch's LSTM equations on ready-made products, (B, 4H) each."""
    enter, forget, new, out = (inputs + recurrent).chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


class CaptionModel(nn.Module):
    """Writes a caption for enhanced regions (B, R, dim_vid); forward() is VSRN's caption loss.

    rnn_type is "gru" or "lstm"; H is dim_hidden, twice that when bidirectional. Dropout acts in two places:
    after the linear layer of the encoder and on [word, context].
    """

    def __init__(
        self,
        vocab_size,
        dim_vid=2048,
        dim_hidden=512,
        dim_word=300,
        max_len=60,
        rnn_type="gru",
        bidirectional=False,
        dropout=0.2,
    ):
        super().__init__()
        if rnn_type not in RNNS:
            raise ValueError(f"--rnn_type {rnn_type}: it can be gru or lstm")
        self.max_len = max_len
        self.encoder = RegionEncoder(dim_vid, dim_hidden, rnn_type, bool(bidirectional), dropout)
        dim = dim_hidden * (2 if bidirectional else 1)
        self.decoder = Decoder(vocab_size, dim_word, dim, rnn_type, dropout)

    def forward(self, regions, labels, masks):
        """-(1/B) Σ mask · log p(label) over entries 1 ... max_len - 1; labels, masks (B, max_len + 1)."""
        masks = masks[:, 1:-1]
        return -(self.label_log_probs(regions, labels, masks != 0) * masks).sum() / len(labels)

    def label_log_probs(self, regions, labels, needed):
        """log p of labels[:, 1:-1] where `needed` (B, max_len - 1) is true, 0 elsewhere.

        Nothing is computed after a caption's last needed step, nor the output layer where it is not needed.
        """
        steps = torch.arange(1, needed.size(1) + 1, device=needed.device)
        length = (needed * steps).amax(1).clamp(min=1)  # (B,): steps to take
        order = length.argsort(descending=True, stable=True)
        running = (length[order, None] >= steps).t()  # (max_len - 1, B)
        running = running[: int(length.max())]
        memory, state = self.encoder(regions)
        hidden = self.decoder.unroll(
            labels[order, : len(running)].t()[running],
            running.sum(1).tolist(),
            tuple(x[order] for x in state),
            memory[order],
        )
        t, b = running.nonzero(as_tuple=True)  # of each row of hidden
        keep = needed[order[b], t]
        t, b = t[keep], order[b[keep]]
        log_probs = self.decoder.word_log_probs(hidden[keep], labels[b, t + 1])
        return hidden.new_zeros(needed.shape).index_put((b, t), log_probs)

    @torch.no_grad()
    def decode(self, regions, beam=1):
        """The most probable captions: [(word ids, log-probability)], one for each image.

        beam=1 is greedy decoding. A caption ends with <end>, or without it after max_len - 1 words; its
        log-probability is the sum over its words. <pad> and <start> are never written. Call in eval mode.
        """
        images, vocab = len(regions), self.decoder.out.out_features
        memory, state = self.encoder(regions.repeat_interleave(beam, 0))
        keys = self.decoder.attention.keys(memory)
        row = torch.arange(images, device=regions.device).unsqueeze(1) * beam  # first row of each image
        scores = regions.new_full((images, beam), -torch.inf)
        scores[:, 0] = 0  # all beams begin alike: only one may count
        words = torch.full((images, beam, 1), START, device=regions.device)
        ended = torch.zeros_like(scores, dtype=torch.bool)
        for _ in range(self.max_len - 1):
            gates = self.decoder.word_gates(words[..., -1].flatten())
            state = self.decoder.advance(gates, state, memory, keys)
            log_probs = next_log_probs(self.decoder.out(state[0]).view(images, beam, vocab), ended)
            scores, best = (scores.unsqueeze(2) + log_probs).flatten(1).topk(beam)  # (images, beam)
            parent, word = best // vocab, best % vocab
            state = tuple(x[(row + parent).flatten()] for x in state)
            words = torch.cat([words.gather(1, parent.unsqueeze(2).expand_as(words)), word.unsqueeze(2)], 2)
            ended = ended.gather(1, parent) | (word == END)
            if ended[:, 0].all():  # scores only fall, so nothing overtakes a best caption that has ended
                break
        best = words[:, 0, 1:].tolist(), scores[:, 0].tolist()
        return [(until_end(ids), score) for ids, score in zip(*best)]


def next_log_probs(logits, ended):
    """log p of every next word (images, beam, V); a caption that has ended only repeats <end>, at no cost."""
    log_probs = logits.log_softmax(-1)
    log_probs[..., [PAD, START]] = -torch.inf
    log_probs[ended] = -torch.inf
    log_probs[..., END][ended] = 0
    return log_probs


def until_end(ids):
    """The ids up to the first <end>, inclusive."""
    return ids[: ids.index(END) + 1] if END in ids else ids
