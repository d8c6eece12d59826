"""Batch normalization over the whole batch of a training run, of which each process has a part."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization of [B, F, ...] whose mean and variance are those of all processes, on any device."""

    def forward(self, x_BF: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x_BF)
        values_FN = x_BF.transpose(0, 1).flatten(1).float()
        count = all_reduce(torch.full((), values_FN.shape[1], device=x_BF.device).float())
        mean_F = all_reduce(values_FN.sum(1)) / count
        variance_F = all_reduce((values_FN - mean_F[:, None]).square().sum(1)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean_F.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance_F * count / (count - 1)).to(self.running_var), self.momentum)
        shape = (-1, *[1] * (x_BF.ndim - 2))
        scale_F = (variance_F + self.eps).rsqrt() * self.weight
        shift_F = self.bias - mean_F * scale_F
        return (x_BF * scale_F.view(shape) + shift_F.view(shape)).to(x_BF.dtype)


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """For sound [B, F, S]."""


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """For images [B, F, Y, X]."""
