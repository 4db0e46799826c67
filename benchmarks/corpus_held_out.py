"""Training runs of kinds that no threshold was chosen on: other data, models, losses, optimizers and mistakes.

Each mistake is made in a job that stands among the healthy ones, so that what it would have reached without is there
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from corpus import Job, batches, hook
from sklearn.datasets import load_breast_cancer, load_wine, make_moons, make_swiss_roll
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor
Data = tuple[Tensor, Tensor]
Maker = Callable[[nn.Module], torch.optim.Optimizer]


class Fit:
    """A supervised job; a mistake is the same job with something replaced."""

    def __init__(self, data: Callable[[int], Data], model: Callable[[], nn.Module], **options: Any) -> None:
        self.data, self.model = data, model
        self.options: dict[str, Any] = {
            "loss": nn.CrossEntropyLoss,
            "optimizer": lambda m: torch.optim.Adam(m.parameters(), lr=2e-3),
            "size": 32,
            "steps": 400,
            "rate": lambda step: 1.0,
            "eval_every": 40,
            "around": lambda step, model, optimizer: None,
            "clip": 0.0,
            "inputs": lambda step, x: x,
            **options,
        }

    def but(self, **options: Any) -> Fit:
        made = {name: options.pop(name) for name in ("data", "model") if name in options}
        return Fit(made.get("data", self.data), made.get("model", self.model), **{**self.options, **options})

    def __call__(self, seed: int, run: Path, interval: int) -> None:
        o = self.options
        torch.manual_seed(seed)
        x, y = self.data(seed)
        cut = int(0.8 * len(y))
        model, loss_fn = self.model(), o["loss"]()
        optimizer = o["optimizer"](model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, o["rate"])
        feed = batches(cut, min(o["size"], cut))
        with hook(run, model, optimizer, loss_fn, interval):
            for step in range(o["steps"]):
                model.train()
                o["around"](step, model, optimizer)
                optimizer.zero_grad()
                chosen = next(feed)
                loss_fn(model(o["inputs"](step, x[chosen])), y[chosen]).backward()
                if o["clip"]:
                    nn.utils.clip_grad_norm_(model.parameters(), o["clip"])
                optimizer.step()
                schedule.step()
                if o["eval_every"] and step % o["eval_every"] == o["eval_every"] - 1:
                    model.eval()
                    with torch.no_grad():
                        loss_fn(model(x[cut:]), y[cut:])


# -- data ------------------------------------------------------------------------------------------------


def table(load: Callable[..., Any], spread: float = 1.0) -> Callable[[int], Data]:
    def make(seed: int) -> Data:
        x, y = load(return_X_y=True)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        inputs = torch.tensor(x, dtype=torch.float32)
        if spread:
            inputs = spread * (inputs - inputs.mean(0)) / inputs.std(0)
        return inputs[order], torch.tensor(y)[order]

    return make


def moons(seed: int) -> Data:
    x, y = make_moons(1000, noise=0.15, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def roll(seed: int) -> Data:
    x, t = make_swiss_roll(1000, noise=0.1, random_state=seed)
    return torch.tensor(x, dtype=torch.float32) / 10, torch.tensor(t, dtype=torch.float32).unsqueeze(1) / 5


def waves(seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(800, 1, generator=generator) * 6
    speed = 0.1 + torch.rand(800, 1, generator=generator) * 0.3
    series = torch.sin(start + speed * torch.arange(33)) + 0.05 * torch.randn(800, 33, generator=generator)
    return series[:, :32].unsqueeze(2), series[:, 32:]


def tokens(seed: int) -> Data:
    """The next of 12 tokens in a cycle that jumps at random; half of what follows cannot be known."""
    generator = torch.Generator().manual_seed(seed)
    jumps = torch.where(
        torch.rand(900, 24, generator=generator) < 0.5, 1, torch.randint(0, 12, (900, 24), generator=generator)
    )
    text = jumps.cumsum(1) % 12
    return text[:, :-1], text[:, 1:]


def bars(seed: int) -> Data:
    """Images of 12 x 12: a bright row or column in noise."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(900, 1, 12, 12, generator=generator)
    y = torch.randint(0, 2, (900,), generator=generator)
    place = torch.randint(0, 12, (900,), generator=generator)
    for index in range(900):
        if y[index]:
            x[index, 0, place[index]] += 1.5
        else:
            x[index, 0, :, place[index]] += 1.5
    return x, y


def with_labels(data: Callable[[int], Data], change: Callable[[Tensor], Tensor]) -> Callable[[int], Data]:
    def make(seed: int) -> Data:
        x, y = data(seed)
        return x, change(y)

    return make


def one_missing(data: Callable[[int], Data]) -> Callable[[int], Data]:
    def make(seed: int) -> Data:
        x, y = data(seed)
        x[300].view(-1)[7] = math.nan
        return x, y

    return make


def one_for_all(data: Callable[[int], Data]) -> Callable[[int], Data]:
    def make(seed: int) -> Data:
        x, y = data(seed)
        return x[:1].expand_as(x), y

    return make


def shuffled(y: Tensor) -> Tensor:
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]


# -- models ----------------------------------------------------------------------------------------------


def dense(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, norm: type[nn.Module] | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (inner, outer) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(inner, outer))
        if number < len(widths) - 2:
            layers += [norm(outer)] if norm else []
            layers.append(act())
    return nn.Sequential(*layers)


class LastOfSequence(nn.Module):
    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Language(nn.Module):
    def __init__(self, layers: int = 2, norm_first: bool = True, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(12, 32), nn.Parameter(0.02 * torch.randn(23, 32))
        block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, norm_first=norm_first, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, 12)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.blocks(self.embed(x) + self.place, mask=mask)).flatten(0, 1)


class Convolutions(nn.Module):
    def __init__(
        self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, act: Callable[[], nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        sizes = [(1, 8), (8, 16), (16, 16)]
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), norm(b), act()) for a, b in sizes))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).amax((2, 3)))


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, 32, 4, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(0.02 * torch.randn(1, 10, 32))
        block = nn.TransformerEncoderLayer(32, 4, 64, 0.1, activation="gelu", norm_first=True, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.cut(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), parts], 1) + self.place)[:, 0])


class Mixture(nn.Module):
    """A gate between experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(2, 16), nn.Sigmoid(), nn.Linear(16, 4))
        self.experts = nn.ModuleList(dense(2, 16, 2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(1)
        return (torch.stack([expert(x) for expert in self.experts], 2) * weights.unsqueeze(1)).sum(2)


def began_at(model: nn.Module, change: Callable[[Tensor], Any]) -> nn.Module:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "norm" not in name:
            with torch.no_grad():
                change(parameter)
    return model


# -- losses ----------------------------------------------------------------------------------------------


class NextToken(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels.flatten())


class WrongSign(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -functional.cross_entropy(logits, labels)


class Gaussian(nn.Module):
    """Negative log-likelihood of a predicted mean and variance."""

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        mean, variance = output[:, :1], functional.softplus(output[:, 1:]) + self.floor
        return (0.5 * (variance.log() + (target - mean) ** 2 / variance)).mean()


class LogOfVariance(Gaussian):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        mean, variance = output[:, :1], functional.relu(output[:, 1:])  # zero, sooner or later
        return (0.5 * (variance.log() + (target - mean) ** 2 / variance)).mean()


# -- jobs of another shape -------------------------------------------------------------------------------


def variational(seed: int, run: Path, interval: int) -> None:
    torch.manual_seed(seed)
    x = bars(seed)[0].flatten(1)
    model = nn.ModuleDict({"encode": dense(144, 64, 16), "decode": dense(8, 64, 144)})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    feed = batches(len(x), 64)
    with hook(run, model, optimizer, None, interval):
        for step in range(400):
            optimizer.zero_grad()
            chosen = x[next(feed)]
            mean, log_variance = model["encode"](chosen).chunk(2, 1)
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1).mean()
            rebuilt = ((model["decode"](z) - chosen) ** 2).sum(1).mean()
            (rebuilt + min(1.0, step / 200) * divergence).backward()  # its weight is annealed upwards
            optimizer.step()


def bandit(seed: int, run: Path, interval: int, rate: float = 0.01) -> None:
    """REINFORCE: a loss that is no measure of progress, and noisy at that."""
    torch.manual_seed(seed)
    policy = dense(4, 32, 5, act=nn.Tanh)
    best = torch.randn(4, 5)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    baseline = 0.0
    with hook(run, policy, optimizer, None, interval):
        for _ in range(500):
            optimizer.zero_grad()
            state = torch.randn(32, 4)
            choice = torch.distributions.Categorical(logits=policy(state))
            action = choice.sample()
            reward = (state @ best).gather(1, action[:, None])[:, 0] + torch.randn(32)
            (-(choice.log_prob(action) * (reward - baseline)).mean() - 0.01 * choice.entropy().mean()).backward()
            baseline = 0.9 * baseline + 0.1 * float(reward.mean())
            optimizer.step()


def contrast(seed: int, run: Path, interval: int, temperature: float = 0.2) -> None:
    torch.manual_seed(seed)
    x = bars(seed)[0]
    model = nn.Sequential(
        Convolutions(nn.BatchNorm2d, nn.ReLU).body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    feed = batches(len(x), 64)
    with hook(run, model, optimizer, None, interval):
        for _ in range(300):
            optimizer.zero_grad()
            chosen = x[next(feed)]
            views = [functional.normalize(model(chosen + 0.3 * torch.randn_like(chosen)), dim=1) for _ in range(2)]
            functional.cross_entropy(views[0] @ views[1].T / temperature, torch.arange(len(chosen))).backward()
            optimizer.step()


def distil(seed: int, run: Path, interval: int) -> None:
    torch.manual_seed(seed)
    x, _ = moons(seed)
    teacher, student = dense(2, 64, 64, 2), dense(2, 16, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    feed = batches(len(x), 50)
    with hook(run, student, optimizer, None, interval):
        for _ in range(400):
            optimizer.zero_grad()
            chosen = x[next(feed)]
            with torch.no_grad():
                target = (teacher(chosen) / 0.1).softmax(1)
            functional.kl_div(student(chosen).log_softmax(1), target, reduction="batchmean").backward()
            optimizer.step()


def quadratic(seed: int, run: Path, interval: int) -> None:
    """L-BFGS on a smooth problem: converged in a few steps, and then still."""
    torch.manual_seed(seed)
    x, y = roll(seed)
    model = dense(3, 16, 1, act=nn.Tanh)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    with hook(run, model, optimizer, None, interval):
        for _ in range(80):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = functional.mse_loss(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)


def overflowing(seed: int, run: Path, interval: int, from_step: int = 150) -> None:
    """Mixed precision; from a step on, the loss overflows at every batch."""
    torch.manual_seed(seed)
    x, y = bars(seed)
    model = Convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu")
    feed = batches(len(y), 32)
    with hook(run, model, optimizer, None, interval):
        for step in range(250):
            optimizer.zero_grad()
            chosen = next(feed)
            loss = functional.cross_entropy(model(x[chosen]), y[chosen])
            if step >= from_step:
                loss = loss * torch.tensor(3e38) * 10
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


# -- the lists -------------------------------------------------------------------------------------------


def optimizer(kind: Any, lr: float, **options: Any) -> Maker:
    return lambda model: kind([p for p in model.parameters() if p.requires_grad], lr=lr, **options)


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

cancer = Fit(table(load_breast_cancer), lambda: dense(30, 32, 16, 2))
wine = Fit(table(load_wine), lambda: dense(13, 24, 3), size=16)
two_moons = Fit(moons, lambda: dense(2, 32, 32, 2))
swiss = Fit(roll, lambda: dense(3, 64, 64, 1), loss=nn.MSELoss)
wave = Fit(waves, lambda: LastOfSequence(nn.GRU(1, 24, batch_first=True), 24), loss=nn.MSELoss, steps=250)
language = Fit(
    tokens, Language, loss=NextToken, optimizer=optimizer(AdamW, 2e-3), rate=lambda s: min(1.0, (s + 1) / 60)
)
image = Fit(bars, Convolutions, optimizer=optimizer(AdamW, 3e-3), steps=250)
patches = Fit(bars, Patches, optimizer=optimizer(AdamW, 1e-3), rate=lambda s: min(1.0, (s + 1) / 50), steps=300)
likelihood = Fit(roll, lambda: dense(3, 64, 64, 2, act=nn.GELU), loss=Gaussian, optimizer=optimizer(Adam, 1e-3))

_BAD = ("ExplodingTensor", "DivergingLoss")
_HIGH = (*_BAD, "UpdateTooLarge", "OscillatingLoss", "DeadRelu", "StalledLoss", "LossNotDecreasing")
_STILL = ("StalledLoss", "UnchangedTensor", "VanishingGradient", "UpdateTooSmall")


def freeze(module: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Language()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(module)
        return model

    return make


def in_eval(step: int, model: nn.Module, optimizer: Any) -> None:
    if step > 40:
        model.eval()


JOBS: tuple[Job, ...] = (
    Job("breast cancer, rmsprop", cancer.but(optimizer=optimizer(torch.optim.RMSprop, 1e-3))),
    Job("breast cancer, adagrad", cancer.but(optimizer=optimizer(torch.optim.Adagrad, 0.02))),
    Job(
        "breast cancer, swish and layer norm",
        cancer.but(model=lambda: dense(30, 32, 16, 2, act=nn.SiLU, norm=nn.LayerNorm)),
    ),
    Job("wine, batch of 2", wine.but(size=2, optimizer=optimizer(SGD, 0.005))),
    Job("wine, logistic regression", wine.but(model=lambda: dense(13, 3), optimizer=optimizer(SGD, 0.1))),
    Job("wine, label smoothing", wine.but(loss=lambda: nn.CrossEntropyLoss(label_smoothing=0.2), steps=600)),
    Job("moons", two_moons),
    Job("moons, tanh", two_moons.but(model=lambda: dense(2, 32, 32, 2, act=nn.Tanh), optimizer=optimizer(SGD, 0.2))),
    Job("moons, leaky", two_moons.but(model=lambda: dense(2, 32, 32, 32, 2, act=nn.LeakyReLU))),
    Job(
        "moons, sigmoid", two_moons.but(model=lambda: dense(2, 64, 2, act=nn.Sigmoid), optimizer=optimizer(Adam, 0.02))
    ),
    Job("moons, experts", two_moons.but(model=Mixture)),
    Job(
        "moons, one cycle",
        two_moons.but(rate=lambda s: math.sin(math.pi * (s + 1) / 401), optimizer=optimizer(SGD, 0.3)),
    ),
    Job(
        "moons, step decay",
        two_moons.but(rate=lambda s: 0.1 ** (s // 150), optimizer=optimizer(SGD, 0.1, momentum=0.9)),
    ),
    Job("swiss roll", swiss),
    Job("swiss roll, Huber", swiss.but(loss=nn.HuberLoss, optimizer=optimizer(SGD, 0.05, momentum=0.9))),
    Job("swiss roll, absolute error", swiss.but(loss=nn.L1Loss)),
    Job("swiss roll, tiny rate", swiss.but(optimizer=optimizer(Adam, 1e-4), steps=700)),
    Job("likelihood below zero", likelihood),
    Job("waves, gru", wave),
    Job("waves, lstm, clipped", wave.but(model=lambda: LastOfSequence(nn.LSTM(1, 24, batch_first=True), 24), clip=0.1)),
    Job("waves, adam, clipped far below", wave.but(clip=1e-3, steps=400)),
    Job("waves, plain rnn", wave.but(model=lambda: LastOfSequence(nn.RNN(1, 24, batch_first=True), 24), clip=1.0)),
    Job("language", language),
    Job("language, norms last", language.but(model=lambda: Language(norm_first=False))),
    Job(
        "language, tied, six layers",
        language.but(model=lambda: Language(6, tied=True), optimizer=optimizer(AdamW, 1e-3)),
    ),
    Job("language, only the head trained", language.but(model=freeze("head"))),
    Job("bars", image),
    Job("bars, group norm", image.but(model=lambda: Convolutions(lambda n: nn.GroupNorm(4, n), nn.ReLU))),
    Job("bars, no norm, batch of 8", image.but(model=lambda: Convolutions(lambda n: nn.Identity(), nn.ELU), size=8)),
    Job("bars, vision transformer", patches),
    Job("variational autoencoder", variational),
    Job("policy gradient", bandit),
    Job("contrastive", contrast),
    Job("distillation", distil),
    Job("L-BFGS", quadratic),
    Job("mixed precision", lambda seed, run, interval: overflowing(seed, run, interval, 10_000)),
    # mistakes, and what the runs themselves show: the evaluation loss of the first two rises again by a third or more
    Job("breast cancer", cancer, ("Overfit",)),
    Job("breast cancer, learnt to the end", cancer.but(steps=1200, optimizer=optimizer(Adam, 5e-4)), ("Overfit",)),
    Job("breast cancer, rate too high", cancer.but(optimizer=optimizer(SGD, 30.0)), _HIGH),
    Job(
        "breast cancer, inputs as they come",
        cancer.but(data=table(load_breast_cancer, 0.0), optimizer=optimizer(SGD, 0.05)),
        (*_HIGH, "PoorWeightInitialization", "InputNotNormalized"),
    ),
    Job(
        "breast cancer, labels shuffled",
        cancer.but(
            data=with_labels(cancer.data, shuffled),
            steps=250,
            model=lambda: dense(30, 4, 2),
            optimizer=optimizer(SGD, 0.01),
        ),
        ("StalledLoss", "LossNotDecreasing", "NoBetterThanGuessing"),
    ),
    Job(
        "breast cancer, records of another unit",
        cancer.but(
            inputs=lambda s, x: 100 * x.flip(1) if s in (150, 250, 350, 450) else x,
            optimizer=optimizer(SGD, 0.05, momentum=0.9),
            steps=520,
        ),
        ("LossSpike", *_HIGH),
        150,
    ),
    Job("bars, one pixel missing", image.but(data=one_missing(bars)), ("NonFiniteInput",)),
    Job("swiss roll, one point for all", swiss.but(data=one_for_all(roll)), ("ConstantInput",)),
    Job(
        "swiss roll, schedule of 60 steps",
        swiss.but(optimizer=optimizer(SGD, 0.02, momentum=0.9), rate=lambda s: max(1e-4, 1 - s / 60)),
        ("LearningRateDecayedEarly",),
        60,
    ),
    Job("wine, wrong sign", wine.but(loss=WrongSign), (*_BAD, "LossNotDecreasing", "UnboundedLoss")),
    Job("wine, rate zero", wine.but(optimizer=optimizer(Adam, 0.0)), ("ZeroLearningRate", *_STILL)),
    Job(
        "wine, learnt by heart",
        wine.but(
            data=with_labels(wine.data, lambda y: torch.where(torch.arange(len(y)) % 3 == 0, (y + 1) % 3, y)),
            model=lambda: dense(13, 512, 3),
            steps=1200,
        ),
        ("Overfit",),
    ),
    Job(
        "moons, all weights equal",
        two_moons.but(model=lambda: began_at(dense(2, 32, 32, 2), lambda w: w.fill_(0.1))),
        ("PoorWeightInitialization",),
    ),
    Job(
        "moons, weights far too large",
        two_moons.but(model=lambda: began_at(dense(2, 32, 32, 2, act=nn.Tanh), lambda w: w.normal_(0, 30))),
        ("SaturatedActivation", "PoorWeightInitialization"),
    ),
    Job(
        "moons, twelve sigmoid layers",
        two_moons.but(model=lambda: dense(2, *[32] * 12, 2, act=nn.Sigmoid)),
        ("VanishingGradient", "StalledLoss"),
    ),
    Job(
        "moons, gradients never zeroed",
        two_moons.but(around=lambda s, m, o: setattr(o, "zero_grad", lambda: None), optimizer=optimizer(SGD, 0.05)),
        ("GradientsNotReset",),
    ),
    Job(
        "moons, clipped to nothing",
        two_moons.but(clip=1e-9, optimizer=optimizer(SGD, 0.1)),
        (*_STILL, "ClippingAlwaysActive"),
    ),
    Job("swiss roll, rate too high", swiss.but(optimizer=optimizer(SGD, 5.0)), _HIGH),
    Job("swiss roll, dead units", swiss.but(optimizer=optimizer(Adam, 1.0)), (*_HIGH, "DeadRelu")),
    Job("logarithm of a variance of zero", likelihood.but(loss=LogOfVariance, model=lambda: dense(3, 64, 2)), _BAD),
    Job("waves, rate decayed to zero", wave.but(rate=lambda s: max(0.0, 1 - s / 40)), ("ZeroLearningRate",), 40),
    Job(
        "waves, diverging",
        wave.but(
            model=lambda: LastOfSequence(nn.RNN(1, 24, batch_first=True, nonlinearity="relu"), 24),
            optimizer=optimizer(SGD, 1.5),
        ),
        _HIGH,
    ),
    Job("language, rate too high", language.but(optimizer=optimizer(AdamW, 1.0), rate=lambda s: 1.0), _HIGH),
    Job(
        "language, head forgotten",
        language.but(optimizer=lambda m: AdamW(m.blocks.parameters(), lr=2e-3)),
        ("UnchangedTensor",),
    ),
    Job("bars, left in eval mode", image.but(around=in_eval), ("ModelInEvalMode",), 41),
    Job(
        "bars, labels in a few classes of a hundred",
        image.but(
            data=with_labels(bars, lambda y: torch.where(torch.arange(len(y)) % 40 == 0, y, 0)),
            optimizer=optimizer(SGD, 0.002),
            eval_every=0,
        ),
        ("ClassImbalance", "NoBetterThanGuessing"),
    ),
    Job(
        "bars, weight decay of 50",
        image.but(optimizer=optimizer(AdamW, 3e-3, weight_decay=50.0)),
        (*_STILL, "LossNotDecreasing"),
    ),
    Job("vision transformer, rate too high", patches.but(optimizer=optimizer(SGD, 20.0)), _HIGH),
    Job("vision transformer, rate far too low", patches.but(optimizer=optimizer(SGD, 1e-9)), _STILL),
    Job("mixed precision, every update skipped", overflowing, ("UpdatesSkipped",), 150),
    Job(
        "policy gradient, rate too high",
        lambda seed, run, interval: bandit(seed, run, interval, 50.0),
        (*_HIGH, "SaturatedActivation"),
    ),
)
JOBS = tuple(replace(job, name=f"held out: {job.name}") for job in JOBS)
