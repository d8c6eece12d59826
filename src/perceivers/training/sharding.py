"""Training with weights, gradients and optimizer states sharded over all processes (FSDP2 of torch)."""

from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from perceivers.errors import PerceiversError
from perceivers.model.attention import SelfAttention

NAME = "fsdp"
"""The value of `trainer.strategy` that stands for this strategy."""


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes, with checkpoints that any other strategy can read."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self._data_parallel_size == 1:
            raise PerceiversError(
                "trainer.strategy = 'fsdp' shards weights over several processes: set trainer.devices to 2 or more, "
                "or leave it out."
            )
        super().setup_environment()


def shard(learner: L.LightningModule, mesh: DeviceMesh) -> None:
    """Shards the weights of a learner: self-attention layers one by one, all others together.

    The layers are gathered when they are called, the others at the beginning of a step.
    """
    for module in list(learner.modules()):
        if isinstance(module, SelfAttention):
            fully_shard(module, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    for step in ("training_step", "validation_step"):
        register_fsdp_forward_method(learner, step)


def gather_weights(learner: L.LightningModule) -> None:
    """Gathers all weights until `release_weights`, since processes may evaluate different numbers of batches."""
    for module in find_sharded(learner):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release_weights(learner: L.LightningModule) -> None:
    """Shards the weights again that `gather_weights` gathered."""
    for module in find_sharded(learner):
        module.set_reshard_after_forward(isinstance(module, SelfAttention), recurse=False)
        module.reshard()


def find_sharded(learner: L.LightningModule) -> list[FSDPModule]:
    """Returns the modules whose weights are sharded together, none for other strategies."""
    return [module for module in learner.modules() if isinstance(module, FSDPModule)]


def local_part(tensor: Any) -> Any:
    """Returns the part of a tensor that this process holds: all of it if it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
