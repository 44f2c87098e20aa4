"""BatchNorm whose statistics are those of the rows of all processes."""

import torch
from torch import nn

from runtime.distributed import total


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows of all processes, on any device; names and numbers as with one process."""

    synced = True

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        """(B, C) or (B, C, ...); a process may have no row."""
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.to(self.running_mean.dtype)  # a sum in bfloat16 could not even count the rows
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        rows = x.new_full((1,), x.numel() // x.shape[1])
        count, mean = total(torch.cat([rows, x.sum(dims)])).split([1, x.shape[1]])
        alone = count <= 1  # one value has no variance: use the running statistics, as in graph.batch_norm
        count = count.detach().clamp(min=1)  # none in any process: 0 / 0 would make gradients NaN, though not used
        mean = torch.where(alone, self.running_mean, mean / count)
        centred = x - mean.view(shape)
        variance = total(centred.square().sum(dims)) / count
        self.update_statistics(mean.detach(), variance.detach(), count, alone)
        variance = torch.where(alone, self.running_var, variance)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(dtype)

    @torch.no_grad()
    def update_statistics(self, mean, variance, count, alone):
        """Running mean and unbiased variance, as torch keeps them."""
        momentum = self.momentum * (~alone).to(mean)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
        self.num_batches_tracked += 1
