"""Tensors from the host to a GPU, while the GPU goes on computing."""

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


def on_device(batches, device):
    """Batches with their tensors on `device`; on a GPU the next batch is on its way while one is worked on."""
    device = torch.device(device)
    if device.type != "cuda":
        for batch in batches:
            yield send_batch(batch, device)
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            coming = send_batch(batch, device), stream.record_event()
        if ahead:
            yield arrived(*ahead, device)
        ahead = coming
    if ahead:
        yield arrived(*ahead, device)


def arrived(batch, copied, device):
    """The batch, after whose copies (the event `copied`) the work of the device's current stream will start."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for x in (batch.images, batch.captions, batch.bboxes):
        if x is not None:
            x.record_stream(current)  # its memory is not reused before the work on it is done
    return batch
