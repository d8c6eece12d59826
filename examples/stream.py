"""A stream: latents go in again with each chunk, so that memory and time per chunk stay the same, however long it is.

    python examples/stream.py

Messages arrive: a few set one of 8 devices to one of 4 states, the others mean nothing. After each chunk of 32 messages
the model tells the states of all devices, most of which were set long before. It trains by truncated backpropagation:
through 4 chunks at a time.

Shape suffixes: B streams, T messages of a chunk, K devices, S states
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers import LearnedPositions, PerceiverIO
from perceivers.adapters import ArrayOutput, TextInput

DEVICES, STATES, NOISE, CHUNK, TRUNCATION = 8, 4, 32, 32, 4


def read_stream(streams: int, chunks: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields chunks of messages [B, T] and the states of devices after each [B, K]."""
    state_BK = torch.zeros(streams, DEVICES, dtype=torch.long)
    for _ in range(chunks):
        message_BT = torch.randint(DEVICES * STATES, DEVICES * STATES + NOISE, (streams, CHUNK))
        sets_BT = torch.rand(streams, CHUNK) < 1.5 / CHUNK
        message_BT[sets_BT] = torch.randint(DEVICES * STATES, (int(sets_BT.sum()),))
        for message_B, is_set_B in zip(message_BT.T, sets_BT.T, strict=True):
            state_BK[is_set_B, message_B[is_set_B] // STATES] = message_B[is_set_B] % STATES
        yield message_BT, state_BK.clone()


def train(steps: int, memory: bool) -> PerceiverIO:
    """Trains a model, with or without memory of earlier chunks."""
    torch.manual_seed(0)
    model = PerceiverIO(
        {"messages": TextInput(DEVICES * STATES + NOISE, CHUNK, 64)},
        {"states": ArrayOutput(STATES, LearnedPositions([DEVICES], 64))},
        latents=8, channels=64, depth=1, heads=4, cross_heads=4, decoder_heads=4,
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    latents, loss = None, torch.zeros(())
    stream: Iterator = iter(())
    losses = []
    for step in range(steps):
        if step % 16 == 0:
            stream, latents = read_stream(64, 16 * TRUNCATION), None
        loss = torch.zeros(())
        for _ in range(TRUNCATION):
            message_BT, state_BK = next(stream)
            encoded = model.encode({"messages": message_BT}, latents=latents)
            latents = encoded.latents if memory else None
            logits_BKS = model.decode(encoded)["states"]
            loss = loss + F.cross_entropy(logits_BKS.flatten(0, 1), state_BK.flatten()) / TRUNCATION
        latents = None if latents is None else latents.detach()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"step {step + 1}: loss {statistics.mean(losses[-100:]):.3f}", flush=True)
    return model


@torch.no_grad()
def measure(model, memory, chunks=1000):
    latents, right, seconds, norm = None, [], [], []
    for message_BT, state_BK in read_stream(16, chunks):
        started = time.perf_counter()
        encoded = model.encode({"messages": message_BT}, latents=latents)
        found = model.decode(encoded)["states"].argmax(-1)
        seconds.append(time.perf_counter() - started)
        latents = encoded.latents if memory else None
        right.append((found == state_BK).float().mean().item())
        norm.append(encoded.latents.norm(dim=-1).mean().item())
    for part in (slice(0, 16), slice(16, 64), slice(64,128), slice(128,256), slice(900,1000)):
        print(part, statistics.mean(right[part]), statistics.median(seconds[part]), statistics.mean(norm[part]))

LR = 3e-3
if __name__ == "__main__":
    import sys
    LR = float(sys.argv[2])
    for memory in (True, False):
        t = time.process_time()
        model = train(int(sys.argv[1]), memory)
        print(time.process_time() - t)
        measure(model, memory)
