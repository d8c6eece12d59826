import signal

import torch

from perceivers.training.learner import Learner


def state(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def interrupt_at(step, monkeypatch):
    """Presses Ctrl-C once, before an update."""
    pressed = []

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step and not pressed:
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Learner, "on_train_batch_start", hook)
