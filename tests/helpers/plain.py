"""The four systems, their loss and their measures, written plainly from docs/method.md with torch alone.

Everything goes pair by pair, in double precision.  A model is taken for its parameters, by their released names.
"""

import torch
import torch.nn.functional as F

from modules.literal import literal_scores


def unit(x, epsilon=0.0, dim=-1):
    return x / (x.norm(dim=dim, keepdim=True) + epsilon)


def states(encoder, ids):
    """The recurrent layer's output (n, D) at each word of one caption, both directions averaged."""
    out = encoder.rnn(encoder.embed(torch.tensor(ids)))[0]
    return sum(out.chunk(2, 1)) / 2 if encoder.rnn.bidirectional else out


# ---- features (B, R, F), captions as lists of ids, boxes (B, R, 4), dependency pairs -> scores (B, C), and VSRN's
# enhanced regions (B, R, D)


def gsmn(net, opt, features, captions, boxes, depends):
    words = [unit(states(net.txt_enc, ids), 1e-8) for ids in captions]
    return sum(literal_scores(net, unit(affine(net.img_enc.fc, features), 1e-8), words, boxes, depends)), None


def scan(net, opt, features, captions, boxes, depends):
    words = [unit(states(net.txt_enc, ids), 1e-8) for ids in captions]
    images = unit(affine(net.img_enc.fc, features), 1e-8)
    return torch.stack([torch.stack([scan_score(opt, image, caption) for caption in words]) for image in images]), None


def vsepp(net, opt, features, captions, boxes, depends):
    images = unit(affine(net.img_enc.fc, features.mean(1)))
    return vector_scores(opt, images, torch.stack([unit(states(net.txt_enc, ids)[-1]) for ids in captions])), None


def vsrn(net, opt, features, captions, boxes, depends):
    images, regions = vsrn_images(net.img_enc, features, opt.vsrn_variant == "f30k")
    captions = torch.stack([unit(states(net.txt_enc, ids)[-1]) for ids in captions])
    return vector_scores(opt, images, captions), regions


SCORES = {"gsmn": gsmn, "scan": scan, "vsepp": vsepp, "vsrn": vsrn}


def affine(layer, x):
    """A linear layer or a 1x1 convolution of the last axis."""
    return torch.einsum("...i,oi->...o", x, layer.weight.flatten(1)) + layer.bias


def scan_score(opt, regions, words):
    """One image (R, D) and one caption (n, D) -> their score, contexts and all."""
    affinity = regions @ words.t()  # (R, n)
    if opt.cross_attn == "t2i":
        asking = words
        weights = (opt.lambda_softmax * scan_norm(affinity, opt.raw_feature_norm, 1)).softmax(0).t()  # (n, R)
        context = weights @ regions
    else:
        asking = regions
        weights = (opt.lambda_softmax * scan_norm(affinity, opt.raw_feature_norm, 0)).softmax(1)  # (R, n)
        context = weights @ words
    cosines = (asking * context).sum(1) / (asking.norm(dim=1) * context.norm(dim=1)).clamp_min(1e-8)
    return {
        "LogSumExp": lambda: (opt.lambda_lse * cosines).exp().sum().log() / opt.lambda_lse,
        "Mean": cosines.mean,
        "Max": cosines.max,
        "Sum": cosines.sum,
    }[opt.agg_func]()


def scan_norm(affinity, how, axis):
    if how == "softmax":
        return affinity.softmax(axis)
    a = F.leaky_relu(affinity, 0.1) if how.startswith("clipped") else affinity
    if how.endswith("l2norm"):
        return a / (a.square().sum(axis, keepdim=True).sqrt() + 1e-8)
    return a / (a.abs().sum(axis, keepdim=True) + 1e-8) if how.endswith("l1norm") else a


def vector_scores(opt, images, captions):
    if opt.use_abs:
        images, captions = images.abs(), captions.abs()
    if opt.measure == "cosine":
        return images @ captions.t()
    return -(captions - images.unsqueeze(1)).clamp(min=0).norm(dim=2)


def vsrn_images(encoder, features, flickr):
    """Features (B, R, F) -> embeddings (B, D), enhanced regions (B, R, D)."""
    regions = affine(encoder.fc, features)
    regions = regions if flickr else unit(regions, dim=1)
    for layer in (encoder.Rs_GCN_1, encoder.Rs_GCN_2, encoder.Rs_GCN_3, encoder.Rs_GCN_4):
        theta, phi, g = (affine(convolution, regions) for convolution in (layer.theta, layer.phi, layer.g))
        related = torch.einsum("bid,bjd,bje->bie", theta, phi, g) / features.shape[1]
        convolution, norm = layer.W
        regions = regions + norm(affine(convolution, related).transpose(1, 2)).transpose(1, 2)
    regions = unit(regions, dim=1)
    last = encoder.img_rnn(regions)[1][0]
    return unit(encoder.bn(last) if flickr else last), regions


# ---- losses


def triplet(scores, margin, hardest, twins=None):
    """Scores (B, B) -> the hinge loss of every row and column, summed.  twins (B, B): True for no negatives."""
    total = 0
    for matrix in (scores, scores.t()):
        for b, row in enumerate(matrix):
            costs = [
                (margin + score - row[b]).clamp(min=0)
                for c, score in enumerate(row)
                if c != b and not (twins is not None and twins[b][c])
            ]
            total = total + (max if hardest else sum)(costs)
    return total


def caption_loss(model, regions, captions):
    """VSRN's caption loss: words from entry 1 to max_len - 1 of the labels, and the first pad after <end>."""
    length = model.max_len
    labels, masks = torch.zeros(len(captions), length + 1, dtype=torch.long), torch.zeros(len(captions), length + 1)
    for label, mask, ids in zip(labels, masks, captions):
        ids = ids if len(ids) < length else [*ids[: length - 1], 2]
        label[: len(ids)], mask[: len(ids) + 1] = torch.tensor(ids), 1
    return -(literal_log_probs(model, regions, labels) * masks[:, 1:-1]).sum() / len(captions)


# ---- measures


def recalls(sims):
    """Scores (N, 5N) -> R@1, R@5, R@10 of both directions in percent; of equal scores the true one comes last."""
    own = torch.arange(sims.shape[1]) // 5 == torch.arange(len(sims)).unsqueeze(1)
    images = [(row[~true] >= row[true].max()).sum().item() for row, true in zip(sims, own)]
    captions = [(column[~true] >= column[true]).sum().item() for column, true in zip(sims.t(), own.t())]
    return [100 * sum(rank < k for rank in ranks) / len(ranks) for ranks in (images, captions) for k in (1, 5, 10)]


# ---- the caption model, step by step


def literal_step(model, word, state, memory):
    """e_i = v . tanh(W [H_i ; h] + b), c = sum_i softmax(e)_i H_i, one recurrent step of torch's layer."""
    decoder = model.decoder
    hidden = (state[0] if isinstance(state, tuple) else state)[0]  # (B, H)
    both = torch.cat([memory, hidden.unsqueeze(1).expand_as(memory)], 2)
    weights = decoder.attention.linear2(torch.tanh(decoder.attention.linear1(both))).softmax(1)  # (B, R, 1)
    context = (weights * memory).sum(1)
    output, state = decoder.rnn(torch.cat([decoder.embedding(word), context], 1).unsqueeze(0), state)
    return decoder.out(output[0]).log_softmax(1), state


def literal_start(model, regions):
    """The encoder by hand; the two directions' last states stand side by side."""
    memory, last = model.encoder.rnn(model.encoder.vid2hid(regions))
    if isinstance(last, tuple):
        return memory, tuple(torch.cat(list(x), 1).unsqueeze(0) for x in last)
    return memory, torch.cat(list(last), 1).unsqueeze(0)


def literal_log_probs(model, regions, labels):
    """All max_len - 1 steps, each with its own output layer: (B, max_len - 1)."""
    memory, state = literal_start(model, regions)
    columns = []
    for t in range(labels.shape[1] - 2):
        log_p, state = literal_step(model, labels[:, t], state, memory)
        columns.append(log_p.gather(1, labels[:, t + 1 : t + 2]))
    return torch.cat(columns, 1)
