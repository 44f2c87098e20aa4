"""Tensors from the host to a GPU, without waiting for it."""

import torch


def send(x, device):
    """A tensor of the host on `device`.  From pinned memory the copy to a GPU lets the host go on at once.

    float16, in which files may hold features, becomes float32 there.
    """
    device = torch.device(device)
    if device.type == "cuda" and x.device.type == "cpu":
        x = (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)
    x = x.to(device)
    return x.float() if x.dtype == torch.float16 else x


def send_batch(batch, device):
    """A Batch with its images, captions and boxes on `device`; labels and masks, which the host reads, stay."""
    fields = {name: getattr(batch, name) for name in ("images", "captions", "bboxes")}
    return batch._replace(**{name: x if x is None else send(x, device) for name, x in fields.items()})
