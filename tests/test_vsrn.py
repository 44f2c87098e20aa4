"""VSRN: values that stay finite, the order similarity, pictures.  test_recipe.py compares it with its definition."""

import pytest
import torch
from tiny import small_opt
from torch.nn.utils.rnn import pad_sequence

import model
from files.errors import InputError
from modules.layers import unit
from systems.vsepp import order_similarity
from systems.vsrn import VSRN


def make(system="vsrn", **changed):
    torch.manual_seed(2)
    return model.build_model(small_opt(system, **changed))


def inputs(B=3, R=4):
    """Features, ids, lengths, and labels and masks of the caption model."""
    torch.manual_seed(3)
    ids = pad_sequence([torch.tensor(x) for x in [[1, 5, 6, 2], [1, 7, 2], [1, 9, 9, 4, 2]][:B]], batch_first=True)
    labels = torch.ones(B, 13, dtype=torch.int64), torch.ones(B, 13)
    return torch.randn(B, R, 8), ids, (ids != 0).sum(1).tolist(), *labels


def test_chrono_init_changes_nothing_but_how_long_units_remember():
    states = []
    for steps in (0, 36):
        net = make(embed_size=400, chrono_init=steps)
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


@pytest.mark.parametrize("variant", ["f30k", "coco"])
def test_zero_columns_and_single_items_stay_finite(variant):
    """Zero features and zero biases: a column that is 0 in all regions; one image, one region, one word.

    BatchNorm over equal rows leaves their rounding, 0 or 1e-7 by the processor, and the unit vector's gradient divides
    by it: such a gradient has to be finite, but it has no other bound.
    """
    net = make(vsrn_variant=variant).train()
    with torch.no_grad():
        net.img_enc.fc.weight[3] = 0
    for B, R, zero in ((3, 4, False), (3, 4, True), (1, 1, False), (1, 1, True)):
        images, ids, lengths, *targets = inputs(B, R)
        net.zero_grad()
        img_emb, cap_emb, regions = net.forward_emb(images * (0 if zero else 1), ids, lengths)
        (net.forward_sim(img_emb, cap_emb).sum() + net.caption_loss(regions, *targets)).backward()
        bound = float("inf") if zero and B > 1 and variant == "f30k" else 1e3
        assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() <= bound for p in net.parameters())
        assert torch.isfinite(img_emb).all() and torch.isfinite(regions).all()


def test_unit_of_zero_is_zero_and_has_no_epsilon():
    x = torch.tensor([[0.0, 0.0], [3e-6, 4e-6]], dtype=torch.float64, requires_grad=True)
    y = unit(x)
    torch.testing.assert_close(y.detach(), torch.tensor([[0, 0], [0.6, 0.8]]).double())
    y.sum().backward()
    assert x.grad.isfinite().all() and x.grad[0].abs().max() <= 1


def test_order_similarity_and_its_gradient():
    torch.manual_seed(1)
    images = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    captions = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    found = order_similarity(images, captions)
    torch.testing.assert_close(found, -(captions - images.unsqueeze(1)).clamp(min=0).norm(dim=2), rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(order_similarity, (images, captions))
    captions = images.detach().clone().requires_grad_()  # on the diagonal the violation is 0
    order_similarity(images, captions).diagonal().sum().backward()
    assert not captions.grad.any()
    assert order_similarity(images, captions[:0]).shape == (3, 0)


def test_order_similarity_makes_no_large_tensor():
    """1,000 x 1,000 pairs of width 64 would be 256 MB; the largest tensor made is the result, 4 MB."""
    images, captions = torch.rand(1000, 64), torch.rand(1000, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        order_similarity(images, captions)
    assert max(event.cpu_memory_usage for event in profile.events()) < 10 << 20


def test_released_list_leaves_the_caption_model_alone():
    net, other = make(), VSRN(small_opt("vsrn"))
    before = net.caption_model.decoder.out.weight.clone()
    net.load_state_dict(other.state_list())
    assert torch.equal(net.img_enc.fc.weight, other.img_enc.fc.weight)
    assert torch.equal(net.caption_model.decoder.out.weight, before)
    assert len(other.state_list()) == 2


# ---- pictures, which VSE++ reads alike


def of_pictures(system="vsrn", **changed):
    return make(system, **{"data_name": "coco", "cnn_type": "resnet18", "no_pretrained": True, **changed})


@pytest.mark.parametrize(
    "system, name, width",
    [("vsepp", "resnet18", 512), ("vsrn", "squeezenet1_1", 512), ("vsrn", "mobilenet_v3_small", 1024)],
)
def test_any_classifier_without_its_last_layer(system, name, width):
    net = of_pictures(system, cnn_type=name).eval()
    assert net.img_enc.fc.in_features == width
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        img_emb, cap_emb = net.encode_images(pictures), net.encode_captions(*inputs(2)[1:3])
        x = net.img_enc.fc(torch.nn.functional.normalize(net.img_enc.cnn(pictures)))
    torch.testing.assert_close(img_emb, torch.nn.functional.normalize(x))
    assert img_emb.shape == cap_emb.shape == (2, 16)
    assert system == "vsepp" or net.caption_model is None


@pytest.mark.parametrize("system", ["vsrn", "vsepp"])
@pytest.mark.parametrize("finetune", [False, True])
def test_the_cnn_learns_only_when_told(system, finetune):
    net = of_pictures(system, finetune=finetune).train()
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
        of_pictures(cnn_type="vgg19", no_pretrained=False)
    message = str(error.value)
    assert f"{tmp_path}/hub/checkpoints/vgg19-dcbb9e9d.pth" in message
    assert "--no_pretrained" in message and "no network" in message


@pytest.mark.parametrize("flag, value", [("cnn_type", "vgg99"), ("measure", "euclid")])
def test_unknown_names(flag, value):
    with pytest.raises(InputError, match=value):
        of_pictures(**{flag: value})
