"""Training scripts about images as tutorials have them: in the form that is found everywhere, and with their slips."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from corpus import batches, digits, hook
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensor = torch.Tensor
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def normalised(seed: int) -> Split:
    """Digits as ``transforms.Normalize`` leaves images: training and evaluation images and their labels."""
    x, y, eval_x, eval_y = digits(seed)
    return (x - 0.31) / 0.38, y, (eval_x - 0.31) / 0.38, eval_y


def shifted(x: Tensor) -> Tensor:
    """Random crops of padded images."""
    rows, columns = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(x, (rows, columns), (2, 3))


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.Conv2d(outer, outer, 3, 1, 1)
        self.norm, self.other_norm = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
        self.past = nn.Conv2d(inner, outer, 1, stride) if stride > 1 or inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inside = self.other_norm(self.second(functional.relu(self.norm(self.first(x)))))
        return functional.relu(inside + self.past(x))


def resnet(classes: int = 10) -> nn.Sequential:
    stem = (nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = (Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


class Net(nn.Module):
    """The convolutional network of the first tutorial, for smaller images."""

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda logits: logits) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.relu, self.pool, self.dropout = nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)
        self.fc1, self.fc2, self.last = nn.Linear(128, 64), nn.Linear(64, 10), last

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.dropout(self.pool(self.relu(self.conv2(x))))
        return self.last(self.fc2(self.relu(self.fc1(x.flatten(1)))))


def evaluate(model: nn.Module, loss_fn: nn.Module, x: Tensor, y: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        loss_fn(model(x), y)
    model.train()


def first_net(
    seed: int,
    run: Path,
    interval: int,
    *,
    rate: float = 0.05,
    last: Callable[[Tensor], Tensor] = lambda logits: logits,
    resets: bool = True,
    cut: bool = False,
    stale: bool = False,
) -> None:
    """The first network that people train, by SGD with momentum and a rate that falls each epoch."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = normalised(seed)
    model, loss_fn = Net(last), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    if stale:
        model = copy.deepcopy(model)
    schedule = StepLR(optimizer, step_size=5, gamma=0.7)
    with hook(run, model, optimizer, loss_fn, interval):
        for _ in range(18):
            for _, chosen in zip(range(22), batches(len(y), 64), strict=False):
                if resets:
                    optimizer.zero_grad()
                loss = loss_fn(model(x[chosen]), y[chosen])
                if cut:
                    loss = torch.tensor(loss.item(), requires_grad=True)
                loss.backward()
                optimizer.step()
            schedule.step()
            evaluate(model, loss_fn, eval_x, eval_y)


def residual(
    seed: int, run: Path, interval: int, *, steps: int = 400, rate: float = 0.1, every_batch: bool = False
) -> None:
    """A residual network by SGD with Nesterov's momentum and a cosine; a slip counts batches as epochs."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = normalised(seed)
    model, loss_fn = resnet(), nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = StepLR(optimizer, 10, 0.3) if every_batch else CosineAnnealingLR(optimizer, steps)
    feed = batches(len(y), 64)
    with hook(run, model, optimizer, loss_fn, interval):
        for step in range(steps):
            chosen = next(feed)
            optimizer.zero_grad()
            loss_fn(model(shifted(x[chosen])), y[chosen]).backward()
            optimizer.step()
            schedule.step()
            if step % 40 == 39:
                evaluate(model, loss_fn, eval_x, eval_y)


def transfer(seed: int, run: Path, interval: int, *, late_head: bool = False, frozen_given: bool = False) -> None:
    """A new head on a network that knows other digits; the head may come after the optimizer, or only norms train."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = normalised(seed)
    model, loss_fn = resnet(5), nn.CrossEntropyLoss()
    before = torch.optim.Adam(model.parameters(), lr=3e-3)
    known, feed = y < 5, batches(int((y < 5).sum()), 64)
    for _ in range(60):
        chosen = next(feed)
        before.zero_grad()
        loss_fn(model(x[known][chosen]), y[known][chosen]).backward()
        before.step()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model[-1] = nn.Linear(32, 10)
    if frozen_given:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "norm" in name
        optimizer = torch.optim.Adam(model[-1].parameters(), lr=1e-3)
    elif not late_head:
        optimizer = torch.optim.Adam(
            [{"params": model[:-1].parameters(), "lr": 1e-4}, {"params": model[-1].parameters()}]
        )
    feed = batches(len(y), 64)
    with hook(run, model, optimizer, loss_fn, interval):
        for step in range(250):
            chosen = next(feed)
            optimizer.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if step % 25 == 24:
                evaluate(model, loss_fn, eval_x, eval_y)


def mixed_up(seed: int, run: Path, interval: int) -> None:
    """Mixup: a loss of two labels that never comes near zero; one cycle of AdamW; the evaluation is on an average."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = normalised(seed)
    model = resnet()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, 1e-2, total_steps=400)
    feed, draw = batches(len(y), 64), torch.distributions.Beta(0.4, 0.4)
    with hook(run, model, optimizer, None, interval) as recorder:
        for step in range(400):
            chosen, share, order = next(feed), float(draw.sample()), torch.randperm(64)
            output = model(share * x[chosen] + (1 - share) * x[chosen][order])
            labels = y[chosen], y[chosen][order]
            losses = [functional.cross_entropy(output, label) for label in labels]
            optimizer.zero_grad()
            (share * losses[0] + (1 - share) * losses[1]).backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            if step % 40 == 39:
                with torch.no_grad():
                    recorder.log("val_loss", float(functional.cross_entropy(average(eval_x), eval_y)))


class Coder(nn.Module):
    """The variational autoencoder of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mean, self.log_variance = nn.Linear(64, 100), nn.Linear(100, 8), nn.Linear(100, 8)
        self.fc3, self.fc4 = nn.Linear(8, 100), nn.Linear(100, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = functional.relu(self.fc1(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return torch.sigmoid(self.fc4(functional.relu(self.fc3(z)))), mean, log_variance


def variational(seed: int, run: Path, interval: int, *, averaged: bool = False) -> None:
    """Losses summed over the batch, as in the examples; a slip averages one of the two only."""
    torch.manual_seed(seed)
    x = digits(seed)[0].flatten(1)
    model = Coder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    feed = batches(len(x), 128)
    with hook(run, model, optimizer, None, interval):
        for _ in range(500):
            images = x[next(feed)]
            rebuilt, mean, log_variance = model(images)
            reduction = "mean" if averaged else "sum"
            divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
            optimizer.zero_grad()
            (functional.binary_cross_entropy(rebuilt, images, reduction=reduction) + divergence).backward()
            optimizer.step()


def adversarial(seed: int, run: Path, interval: int) -> None:
    """DCGAN: transposed convolutions, batch norm, leaky units, Adam at 2e-4 with a first beta of a half."""
    torch.manual_seed(seed)
    x = digits(seed)[0] * 2 - 1
    generator = nn.Sequential(
        *(nn.ConvTranspose2d(16, 32, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
    )
    judge = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1, bias=False)),
        *(nn.BatchNorm2d(32), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 2), nn.Flatten()),
    )
    loss_fn = nn.BCEWithLogitsLoss()
    both = [torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (judge, generator)]
    feed, real, fake = batches(len(x), 64), torch.ones(64, 1), torch.zeros(64, 1)
    with hook(run, {"netG": generator, "netD": judge}, both, loss_fn, interval):
        for _ in range(350):
            judge.zero_grad()
            loss_fn(judge(x[next(feed)]), real).backward()
            made = generator(torch.randn(64, 16, 1, 1))
            loss_fn(judge(made.detach()), fake).backward()
            both[0].step()
            generator.zero_grad()
            loss_fn(judge(made), real).backward()
            both[1].step()


def siamese(seed: int, run: Path, interval: int) -> None:
    """Pairs of images, near or apart by a margin."""
    torch.manual_seed(seed)
    x, y, _, _ = normalised(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with hook(run, model, optimizer, None, interval):
        for _ in range(400):
            one = torch.randint(len(y), (32,))
            same = torch.rand(32) < 0.5
            other = torch.stack([_partner(y, int(i), bool(s)) for i, s in zip(one, same, strict=True)])
            distance = functional.pairwise_distance(model(x[one]), model(x[other]))
            loss = torch.where(same, distance.pow(2), functional.relu(1 - distance).pow(2)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _partner(y: Tensor, index: int, same: bool) -> Tensor:
    choices = torch.nonzero((y == y[index]) == same).flatten()
    return choices[torch.randint(len(choices), ())]


def distilled(seed: int, run: Path, interval: int) -> None:
    """A small network learns from a trained one at temperature 4 and from the labels."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = normalised(seed)
    teacher, student = resnet(), nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    before, feed = torch.optim.Adam(teacher.parameters(), lr=3e-3), batches(len(y), 64)
    for chosen in _some(feed, 60):
        before.zero_grad()
        functional.cross_entropy(teacher(x[chosen]), y[chosen]).backward()
        before.step()
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    with hook(run, student, optimizer, None, interval) as recorder:
        for step, chosen in enumerate(_some(feed, 400)):
            with torch.no_grad():
                soft = (teacher(x[chosen]) / 4).softmax(1)
            output = student(x[chosen])
            distance = functional.kl_div((output / 4).log_softmax(1), soft, reduction="batchmean") * 16
            optimizer.zero_grad()
            (0.7 * distance + 0.3 * functional.cross_entropy(output, y[chosen])).backward()
            optimizer.step()
            if step % 40 == 39:
                with torch.no_grad():
                    recorder.log("val_loss", float(functional.cross_entropy(student(eval_x), eval_y)))


def _some(feed: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    return (next(feed) for _ in range(count))


class Rounded(nn.Linear):
    """Weights and outputs of four bits in the forward pass, and gradients straight through."""

    def forward(self, x: Tensor) -> Tensor:
        step = self.weight.detach().abs().max() / 7
        weight = self.weight + ((self.weight / step).round() * step - self.weight).detach()
        y = functional.linear(x, weight, self.bias)
        size = y.detach().abs().max() / 127
        return y + ((y / size).round() * size - y).detach()


def quantised(seed: int, run: Path, interval: int) -> None:
    """Training aware of quantisation."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = normalised(seed)
    model = nn.Sequential(nn.Flatten(), Rounded(64, 64), nn.ReLU(), Rounded(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    feed = batches(len(y), 64)
    with hook(run, model, optimizer, loss_fn, interval):
        for step, chosen in enumerate(_some(feed, 400)):
            optimizer.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if step % 40 == 39:
                evaluate(model, loss_fn, eval_x, eval_y)


def two_tasks(seed: int, run: Path, interval: int) -> None:
    """The digit, and how much ink it has: two heads, one loss, micro-batches that add up, clipped."""
    torch.manual_seed(seed)
    x, y, _, _ = normalised(seed)
    ink = x.mean((1, 2, 3)).unsqueeze(1)
    model = nn.ModuleDict({"trunk": resnet(32), "digit": nn.Linear(32, 10), "ink": nn.Linear(32, 1)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    feed = batches(len(y), 16)
    with hook(run, model, optimizer, None, interval):
        for number, chosen in enumerate(_some(feed, 1000)):
            shared = functional.relu(model["trunk"](x[chosen]))
            loss = functional.cross_entropy(model["digit"](shared), y[chosen])
            ((loss + 0.5 * functional.mse_loss(model["ink"](shared), ink[chosen])) / 4).backward()
            if number % 4 == 3:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
