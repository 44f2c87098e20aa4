"""VSRN against the definitions of docs/method.md, section 3, written plainly."""

import argparse

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import model
from files.errors import InputError
from modules import order_similarity
from modules.layers import unit
from systems import vsrn
from systems.options import completed


def options(**changed):
    values = {
        "data_name": "f30k_precomp",
        "img_dim": 10,
        "embed_size": 8,
        "vocab_size": 12,
        "word_dim": 5,
        "num_layers": 1,
        "use_abs": False,
        "no_imgnorm": False,
        "measure": "cosine",
        "margin": 0.2,
        "max_violation": False,
        "dim_hidden": 6,
        "dim_word": 4,
        "max_len": 7,
        "rnn_type": "gru",
        "bidirectional": 0,
        "input_dropout_p": 0.2,
    }
    return completed(argparse.Namespace(**values), model="vsrn", **changed)


def padded(ids):
    return pad_sequence([torch.tensor(x) for x in ids], batch_first=True), [len(x) for x in ids]


def literal_image(net, features, flickr):
    """One image, one region at a time: (R, img_dim) -> embedding (D,), enhanced regions (R, D)."""
    enc = net.img_enc

    def over_regions(x):
        return torch.stack([column / column.pow(2).sum().sqrt() for column in x.t()]).t()

    v = torch.stack([enc.fc(f) for f in features])
    if not flickr:
        v = over_regions(v)
    for layer in (enc.Rs_GCN_1, enc.Rs_GCN_2, enc.Rs_GCN_3, enc.Rs_GCN_4):

        def conv(c, x):
            return c.weight[:, :, 0] @ x + c.bias

        rows = []
        for i in range(len(v)):
            y = sum(
                conv(layer.theta, v[i]) @ conv(layer.phi, v[j]) / len(v) * conv(layer.g, v[j]) for j in range(len(v))
            )
            bn = layer.W[1]
            w = (conv(layer.W[0], y) - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
            rows.append(v[i] + w * bn.weight + bn.bias)
        v = torch.stack(rows)
    v = over_regions(v)
    h = torch.zeros(1, v.shape[1], dtype=v.dtype)
    cell = torch.nn.GRUCell(v.shape[1], v.shape[1]).to(v.dtype)
    cell.load_state_dict({k.removesuffix("_l0"): p for k, p in enc.img_rnn.state_dict().items()})
    for region in v:
        h = cell(region.unsqueeze(0), h)
    h = enc.bn(h)[0] if flickr else h[0]
    return h / h.pow(2).sum().sqrt(), v


def make(**changed):
    torch.manual_seed(2)
    net = model.VSRN(options(**changed)).double().eval()
    for name, value in net.state_dict().items():  # nothing at a value that hides a mistake
        if value.is_floating_point():
            torch.nn.init.normal_(value, std=0.5)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return net


def inputs(B=3, R=4, dtype=torch.float64):
    torch.manual_seed(3)
    ids, lengths = padded([[1, 5, 6, 2], [1, 7, 2], [1, 9, 9, 4, 2]][:B])
    return torch.randn(B, R, 10, dtype=dtype), ids, lengths


@pytest.mark.parametrize("data_name", ["f30k_precomp", "coco_precomp", "flickr8k_precomp"])
@torch.no_grad()
def test_image_encoder_is_the_literal_definition(data_name):
    net = make(data_name=data_name)
    images, ids, lengths = inputs()
    img_emb, _, regions = net.forward_emb(images, ids, lengths)
    for image, ours, related in zip(images, img_emb, regions):
        expected, v = literal_image(net, image, data_name == "f30k_precomp")
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(related, v, rtol=0, atol=1e-12)


@torch.no_grad()
def test_caption_embedding_does_not_depend_on_padding():
    net = make()
    _, ids, lengths = inputs()
    together = net.txt_enc(ids, lengths)
    for b, n in enumerate(lengths):
        last = net.txt_enc.rnn(net.txt_enc.embed(ids[b, :n]))[0][-1]
        torch.testing.assert_close(together[b], last / last.norm(), rtol=0, atol=1e-12)
    net.txt_enc.use_abs = True
    torch.testing.assert_close(net.txt_enc(ids, lengths), together.abs())


def test_untrained_relations_hand_on_their_input():
    x = torch.randn(2, 5, 8)
    assert torch.equal(vsrn.RegionRelations(8)(x), x)


def test_chrono_init_changes_nothing_but_how_long_units_remember():
    states = []
    for steps in (0, 36):
        torch.manual_seed(0)
        net = model.VSRN(options(embed_size=400, chrono_init=steps))
        states.append({k: v for k, v in net.img_enc.state_dict().items() if not k.startswith("img_rnn.bias")})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    rnn = net.img_enc.img_rnn
    for name, weight in rnn.named_parameters():
        if not name.startswith("bias"):
            torch.nn.init.zeros_(weight)  # what is left of a state then depends on the biases alone
    nothing = torch.zeros(2, 1, 400)
    after = rnn(nothing, torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(1, 2, 400).contiguous())[0][:, 0]
    kept = after[1] - after[0]  # of a state of 1, in one step
    assert 1 / 2 <= kept.min() < 0.75 and 0.96 < kept.max() <= 35 / 36
    assert (kept > 1 - 2 / 36).float().mean().item() == pytest.approx(18 / 34, abs=0.1)


@pytest.mark.parametrize("data_name", ["f30k_precomp", "coco_precomp"])
def test_zero_columns_and_single_items_stay_finite(data_name):
    """Zero features and zero biases: a column that is 0 in all regions; one image, one region, one word.

    BatchNorm over equal rows leaves their rounding, 0 or 1e-7 by the processor, and the unit vector's gradient divides
    by it: such a gradient has to be finite, but it has no other bound.
    """
    torch.manual_seed(0)
    net = model.VSRN(options(data_name=data_name)).train()
    with torch.no_grad():
        net.img_enc.fc.weight[3] = 0
    for B, R, zero in ((3, 4, False), (3, 4, True), (1, 1, False), (1, 1, True)):
        images, ids, lengths = inputs(B, R, torch.float32)
        net.zero_grad()
        img_emb, cap_emb, regions = net.forward_emb(images * (0 if zero else 1), ids, lengths)
        labels, masks = torch.ones(B, 8, dtype=torch.int64), torch.ones(B, 8)
        (net.forward_sim(img_emb, cap_emb).sum() + net.caption_loss(regions, labels, masks)).backward()
        bound = float("inf") if zero and B > 1 and data_name == "f30k_precomp" else 1e3
        assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() <= bound for p in net.parameters())
        assert torch.isfinite(img_emb).all() and torch.isfinite(regions).all()


def test_unit_of_zero_is_zero_and_has_no_epsilon():
    x = torch.tensor([[0.0, 0.0], [3e-6, 4e-6]], dtype=torch.float64, requires_grad=True)
    y = unit(x)
    torch.testing.assert_close(y.detach(), torch.tensor([[0, 0], [0.6, 0.8]]).double())
    y.sum().backward()
    assert x.grad.isfinite().all() and x.grad[0].abs().max() <= 1


def test_similarities_are_the_literal_definitions(monkeypatch):
    monkeypatch.setattr(order_similarity, "TILE_SIZE", 40)  # many tiles, and the last of each kind smaller
    torch.manual_seed(1)
    images, captions = torch.randn(7, 8).double(), torch.randn(11, 8).double()
    order = model.VSRN(options(measure="order")).forward_sim(images, captions)
    cosine = model.VSRN(options()).forward_sim(images, captions)
    for i, image in enumerate(images):
        for c, caption in enumerate(captions):
            below = [max(0.0, (s - m).item()) ** 2 for s, m in zip(caption, image)]
            assert order[i, c].item() == pytest.approx(-(sum(below) ** 0.5), rel=1e-12)
            inner = sum(s * m for s, m in zip(caption, image)).item()
            assert cosine[i, c].item() == pytest.approx(inner, rel=1e-12)


@pytest.mark.parametrize("tile", [8, 40, 1 << 20])
def test_order_similarity_gradient(monkeypatch, tile):
    monkeypatch.setattr(order_similarity, "TILE_SIZE", tile)
    torch.manual_seed(1)
    images = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    captions = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(order_similarity.order_similarity, (images, captions))
    captions = images.detach().clone().requires_grad_()  # on the diagonal the violation is 0
    order_similarity.order_similarity(images, captions).diagonal().sum().backward()
    assert not captions.grad.any()
    assert order_similarity.order_similarity(images, captions[:0]).shape == (3, 0)


def test_order_similarity_makes_no_large_tensor():
    """1,000 x 1,000 pairs of width 64 would be 256 MB; the largest tensor made is the result, 4 MB."""
    images, captions = torch.rand(1000, 64), torch.rand(1000, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        order_similarity.order_similarity(images, captions)
    assert max(event.cpu_memory_usage for event in profile.events()) < 10 << 20


def test_caption_loss_trains_the_image_encoder():
    net = model.VSRN(options())
    images, ids, lengths = inputs(dtype=torch.float32)
    labels, masks = torch.ones(3, 8, dtype=torch.int64), torch.ones(3, 8)
    net.caption_loss(net.forward_emb(images, ids, lengths)[2], labels, masks).backward()
    assert net.img_enc.fc.weight.grad.abs().max() > 0


def test_released_list_leaves_the_caption_model_alone():
    net, other = model.VSRN(options()), model.VSRN(options())
    before = net.caption_model.decoder.out.weight.clone()
    net.load_state_dict(other.state_list())
    assert torch.equal(net.img_enc.fc.weight, other.img_enc.fc.weight)
    assert torch.equal(net.caption_model.decoder.out.weight, before)
    assert len(other.state_list()) == 2


def test_unknown_measure():
    with pytest.raises(ValueError, match="euclid"):
        model.VSRN(options(measure="euclid"))


# ---- pictures ----


def picture_options(**changed):
    values = {"data_name": "coco", "cnn_type": "resnet18", "finetune": False, "no_pretrained": True}
    return options(**{**values, **changed})


@pytest.mark.parametrize(
    "name, width", [("resnet18", 512), ("vgg11", 4096), ("squeezenet1_1", 512), ("mobilenet_v3_small", 1024)]
)
def test_any_classifier_without_its_last_layer(name, width):
    net = model.VSRN(picture_options(cnn_type=name)).eval()
    assert net.img_enc.fc.in_features == width
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        img_emb, cap_emb, regions = net.forward_emb(pictures, *padded([[1, 2], [1, 5, 2]]))
        x = net.img_enc.fc(torch.nn.functional.normalize(net.img_enc.cnn(pictures)))
    torch.testing.assert_close(img_emb, torch.nn.functional.normalize(x))
    assert regions is None and img_emb.shape == cap_emb.shape == (2, 8)
    assert net.caption_loss(regions, None, None) == 0


@pytest.mark.parametrize("finetune", [False, True])
def test_the_cnn_learns_only_when_told(finetune):
    net = model.VSRN(picture_options(finetune=finetune)).train()
    before = {k: v.clone() for k, v in net.img_enc.cnn.state_dict().items()}
    net.img_enc(torch.randn(2, 3, 32, 32)).sum().backward()
    assert net.img_enc.fc.weight.grad is not None
    assert (next(net.img_enc.cnn.parameters()).grad is not None) == finetune
    same = all(torch.equal(v, before[k]) for k, v in net.img_enc.cnn.state_dict().items())
    assert same != finetune  # BatchNorm's statistics move only when the CNN is trained


def test_missing_weights_are_explained(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError) as error:
        model.VSRN(picture_options(cnn_type="vgg19", no_pretrained=False))
    message = str(error.value)
    assert f"{tmp_path}/hub/checkpoints/vgg19-dcbb9e9d.pth" in message
    assert "--no_pretrained" in message and "no network" in message


def test_unknown_classifier():
    with pytest.raises(InputError, match="vgg99"):
        model.VSRN(picture_options(cnn_type="vgg99"))
