"""Several processes train like one."""

import copy
import multiprocessing

import torch
import torch.distributed as dist
from torch import nn

from perceivers.model.batch_norm import BatchNorm2d

CONTEXT = multiprocessing.get_context("forkserver")


def normalize_part(rank, address, layer, images, sender):
    """Normalizes every second image, and sends outputs, gradients and the statistics."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    x = images[rank * 2 : rank * 2 + 2].clone().requires_grad_()
    y = layer(x)
    (y.square() * torch.arange(5.0)).sum().backward()
    dist.all_reduce(layer.weight.grad)
    sender.send(
        [value.detach().numpy() for value in (y, x.grad, layer.weight.grad, layer.running_mean, layer.running_var)]
    )
    dist.destroy_process_group()


def test_batch_normalization_over_two_processes_is_that_of_one(tmp_path):
    layer = BatchNorm2d(3)
    nn.init.normal_(layer.weight)
    images = 3 + 2 * torch.randn(4, 3, 4, 5)
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
    for rank, (_, sender) in enumerate(pipes):
        arguments = (rank, tmp_path / "address", copy.deepcopy(layer), images, sender)
        CONTEXT.Process(target=normalize_part, args=arguments).start()
    parts = [[torch.from_numpy(value) for value in receiver.recv()] for receiver, _ in pipes]
    x = images.clone().requires_grad_()
    y = layer(x)
    (y.square() * torch.arange(5.0)).sum().backward()
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), y)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), x.grad)
    for part in parts:
        torch.testing.assert_close(part[2], layer.weight.grad)
        torch.testing.assert_close(part[3], layer.running_mean)
        torch.testing.assert_close(part[4], layer.running_var)
