"""VSRN's caption model: encoder over the enhanced regions, attention decoder, loss, greedy and beam decoding.

docs/method.md, section 3.4. The parameters have the names of the released code.
"""

import torch
from torch import nn
from torch.nn import functional as F

from runtime.transfer import send
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
    """Attention: softmax over the regions of linear2(tanh(linear1([encoder's output, hidden state])))."""

    def __init__(self, dim):
        super().__init__()
        self.linear1 = nn.Linear(dim * 2, dim)
        self.linear2 = nn.Linear(dim, 1, bias=False)

    def keys(self, memory):
        """The encoder outputs' share of linear1, the same at every step: its weight is [W_enc W_hid]."""
        return F.linear(memory, self.linear1.weight[:, : memory.size(-1)], self.linear1.bias)  # (B, R, H)

    def forward(self, hidden, memory, keys):
        """A state (B, H), the encoder's outputs and their `keys` (B, R, H) -> context (B, H)."""
        query = F.linear(hidden, self.linear1.weight[:, hidden.size(-1) :])
        weights = self.linear2(torch.tanh(keys + query.unsqueeze(1))).softmax(1)  # (B, R, 1)
        return (weights.transpose(1, 2) @ memory).squeeze(1)


class Decoder(nn.Module):
    """One recurrent layer that reads [word, context]; state: (h,) of a GRU, (h, c) of an LSTM."""

    def __init__(self, vocab_size, dim_word, dim, rnn_type, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim_word)
        self.attention = Attention(dim)
        self.rnn = RNNS[rnn_type](dim_word + dim, dim)  # holds the weights by their released names, for `advance`
        self.out = nn.Linear(dim, vocab_size)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_normal_(self.out.weight)

    def advance(self, words, state, memory, keys):
        """Words' vectors (n, dim_word), the state before, the encoder's outputs and their keys -> the state after."""
        context = self.dropout(self.attention(state[0], memory, keys))
        inputs, weights = torch.cat([words, context], 1), self.rnn.all_weights[0]
        if self.rnn.mode == "LSTM":
            return torch.lstm_cell(inputs, state, *weights)
        return (torch.gru_cell(inputs, *state, *weights),)

    def word_log_probs(self, hidden, words):
        """log p of words (N,) after hidden states (N, H).  In parts: a CPU is slower with N x vocabulary at once."""
        rows = 512 if hidden.device.type == "cpu" else 8192
        return torch.cat(
            [-F.cross_entropy(self.out(h), w, reduction="none") for h, w in zip(hidden.split(rows), words.split(rows))]
        )

    def unroll(self, words, sizes, state, memory):
        """Teacher forcing.  The captions are sorted, the longest first; the first sizes[t] of them have a step t.

        words (sum(sizes),): those of step 0, of step 1, and so on -> hidden states (sum(sizes), H) in this order.
        """
        keys, hidden = self.attention.keys(memory), []
        for read in self.dropout(self.embedding(words)).split(sizes):
            if len(read) < len(memory):  # captions have ended
                memory, keys, *state = (x[: len(read)] for x in (memory, keys, *state))
            state = self.advance(read, state, memory, keys)
            hidden.append(state[0])
        return torch.cat(hidden)


class CaptionModel(nn.Module):
    """Writes a caption for enhanced regions (B, R, dim_vid); forward() is VSRN's caption loss.

    rnn_type is "gru" or "lstm"; H is dim_hidden, twice that when bidirectional.
    """

    def __init__(self, vocab_size, dim_vid, dim_hidden, dim_word, max_len, rnn_type, bidirectional, dropout):
        super().__init__()
        if rnn_type not in RNNS:
            raise ValueError(f"--rnn_type {rnn_type}: it can be gru or lstm")
        self.max_len = max_len
        self.encoder = RegionEncoder(dim_vid, dim_hidden, rnn_type, bool(bidirectional), dropout)
        dim = dim_hidden * (2 if bidirectional else 1)
        self.decoder = Decoder(vocab_size, dim_word, dim, rnn_type, dropout)

    def forward(self, regions, labels, masks):
        """-(1/B) Σ mask · log p(label) over entries 1 ... max_len - 1; labels, masks (B, max_len + 1).

        Give labels and masks on the host, where the steps are planned; a GPU's tensors would be copied there first.
        """
        labels, masks = labels.cpu(), masks.cpu()
        log_probs, where = self.needed_log_probs(regions, labels, masks[:, 1:-1] != 0)
        weights = send(masks[:, 1:-1][where].to(log_probs.dtype), log_probs.device)
        return -(log_probs * weights).sum() / len(labels)

    def needed_log_probs(self, regions, labels, needed):
        """log p (N,) of the labels[:, 1:-1] that `needed` (B, max_len - 1) marks, and their (rows, columns).

        Both are on the host.  Nothing else is computed: no step after a caption's last needed one, no other output.
        """
        steps = torch.arange(1, needed.size(1) + 1)
        length = (needed * steps).amax(1).clamp(min=1)  # (B,): steps to take
        order = length.argsort(descending=True, stable=True)
        running = length[order] >= steps[: length.max()].unsqueeze(1)  # (steps, B), the longest captions first
        step, position = running.nonzero(as_tuple=True)
        caption, sizes = order[position], running.sum(1)
        keep = needed[caption, step]
        where = caption[keep], step[keep]
        parts = [order, labels[caption, step], keep.nonzero().flatten(), labels[where[0], where[1] + 1]]
        sent = send(torch.cat(parts), regions.device)  # all indices in one copy
        order, words, kept, targets = sent.split([len(part) for part in parts])
        memory, state = self.encoder(regions)
        memory, *state = (x.index_select(0, order) for x in (memory, *state))
        hidden = self.decoder.unroll(words, sizes.tolist(), tuple(state), memory).index_select(0, kept)
        return self.decoder.word_log_probs(hidden, targets), where

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
            read = self.decoder.embedding(words[..., -1].flatten())
            state = self.decoder.advance(read, state, memory, keys)
            log_probs = self.decoder.out(state[0]).log_softmax(-1).view(images, beam, vocab)
            log_probs[..., [PAD, START]] = -torch.inf
            log_probs[ended] = -torch.inf
            log_probs[..., END][ended] = 0  # a caption that has ended only repeats <end>, at no cost
            scores, best = (scores.unsqueeze(2) + log_probs).flatten(1).topk(beam)  # (images, beam)
            parent, word = best // vocab, best % vocab
            state = tuple(x[(row + parent).flatten()] for x in state)
            words = torch.cat([words.gather(1, parent.unsqueeze(2).expand_as(words)), word.unsqueeze(2)], 2)
            ended = ended.gather(1, parent) | (word == END)
            if ended[:, 0].all():  # scores only fall, so nothing overtakes a best caption that has ended
                break
        captions = (ids[: ids.index(END) + 1] if END in ids else ids for ids in words[:, 0, 1:].tolist())
        return list(zip(captions, scores[:, 0].tolist()))
