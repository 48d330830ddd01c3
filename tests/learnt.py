"""A small model that has learnt a text, within seconds: what it writes looks like text."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch

from retnet.checkpoint import save_checkpoint
from retnet.config import preset
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet

TEXT = "".join(
    f"Question {i % 7}?\nAn answer to it is number {i % 5}, {'so on, ' * (i % 4)}the end.\n\n"
    for i in range(140)
)


def learnt_model(steps: int = 60) -> RetNet:
    """Of bytes; one of its own for everyone who asks."""
    return deepcopy(_learnt_model(steps))


@cache
def _learnt_model(steps: int) -> RetNet:
    model = RetNet(
        preset("tiny", d_model=64, num_layers=1), generator=torch.Generator().manual_seed(0)
    )
    tokens = torch.tensor(ByteTokenizer().encode(TEXT))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 129, (8, 1), generator=generator)
        windows = tokens[starts + torch.arange(129)]
        features = model.features(windows[:, :-1])[0]
        loss = torch.nn.functional.cross_entropy(
            model.logits(features).flatten(0, 1), windows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def save_learnt_model(directory: Path) -> Path:
    """As a checkpoint."""
    save_checkpoint(directory, learnt_model(), ByteTokenizer())
    return directory
