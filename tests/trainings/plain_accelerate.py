"""A training as one writes it on accelerate alone; converted.py is the same one as a task."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

FOLDER = Path("runs/plain")


def data(size, seed):
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.square().sum(1) > 7.3).long())


def network():
    return nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 2))


def main(epochs=10, batch_size=64):
    set_seed(0)
    accelerator = Accelerator(log_with="tensorboard", project_dir=FOLDER)
    accelerator.init_trackers("plain")
    training = DataLoader(data(1000, 1), batch_size // accelerator.num_processes, shuffle=True)
    held_out = DataLoader(data(500, 2), batch_size)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(training))
    model, optimizer, training, held_out, schedule = accelerator.prepare(model, optimizer, training, held_out, schedule)
    begin, step, best = 0, 0, float("inf")
    if saved := sorted(FOLDER.glob("epoch-*")):
        accelerator.load_state(saved[-1])
        begin = int(saved[-1].name.removeprefix("epoch-"))
        step = begin * len(training)
    for epoch in range(begin, epochs):
        model.train()
        for x, y in training:
            loss = cross_entropy(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 10 == 0:
                accelerator.log({"loss": accelerator.reduce(loss.detach(), "mean").item()}, step)
        model.eval()
        losses, right = [], []
        for x, y in held_out:
            with torch.no_grad():
                scores = model(x)
            scores, y = accelerator.gather_for_metrics((scores, y))
            losses.append(cross_entropy(scores, y, reduction="none"))
            right.append(scores.argmax(1) == y)
        found = torch.cat(losses).mean().item()
        accelerator.log({"eval_loss": found, "accuracy": torch.cat(right).float().mean().item()}, step)
        accelerator.save_state(FOLDER / f"epoch-{epoch + 1:03d}")
        if found < best:
            best = found
            accelerator.save_model(model, FOLDER / "best")
    accelerator.end_training()
    return best


if __name__ == "__main__":
    best = main()
