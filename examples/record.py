"""One line in a training script: record every step, judge it, stop when it is lost."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from stepwatch.probe import Hook

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
loss_fn = nn.CrossEntropyLoss()

hook = Hook("runs/exp1", model=model, optimizer=optimizer, loss_fn=loss_fn, rules="recommended")

for _ in range(10):
    model.train()
    for chosen in torch.randperm(1437).split(64):
        optimizer.zero_grad()
        loss_fn(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(images[1437:])
        loss_fn(logits, labels[1437:])  # the evaluation loss, because the model is in eval mode
        hook.log("accuracy", (logits.argmax(1) == labels[1437:]).float().mean())

hook.close()  # also happens at exit, after an exception and on SIGTERM
