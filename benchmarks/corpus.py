"""Whole training runs, made by code: healthy ones with what makes them look ill, and real mistakes.

Each run is a function of a seed that trains a real model and hands every step to a real hook. Healthy runs
are labelled with no rule; faulty ones with the rules of which one must fire.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.nn import functional

from stepwatch.probe import Hook, SaveConfig

STEPS = 400


@dataclass(frozen=True)
class Job:
    """One kind of training run.

    Attributes:
        train: trains with a seed, into a run, at a save interval.
        expected: rules of which one must fire; empty for a healthy run.
        since: the step from which on a mistake can be seen: where a schedule is at its end, where a rate is above those
            that train the same model well; that of an overfitting is its run's best evaluation.
    """

    name: str
    train: Callable[[int, Path, int], None]
    expected: tuple[str, ...] = ()
    since: int = 0


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    cut = 1437
    return x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]]


def batches(count: int, size: int) -> Iterator[torch.Tensor]:
    while True:
        order = torch.randperm(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for number in range(len(widths) - 1):
        layers.append(nn.Linear(widths[number], widths[number + 1]))
        if number < len(widths) - 2:
            layers += [nn.BatchNorm1d(widths[number + 1])] if norm else []
            layers.append(act())
            layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def sgd(lr: float, momentum: float = 0.9, **options: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=lr, momentum=momentum, **options
    )


def adam(lr: float, **options: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, **options)


def classify(
    make_model: Callable[[], nn.Module],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    size: int = 64,
    steps: int = STEPS,
    data: Callable[[Any], Any] = lambda d: d,
    schedule: Callable[[int], float] | None = None,
    clip: float = 0.0,
    zero_grad: bool = True,
    autocast: bool = False,
    eval_every: int = 25,
    loss_fn: nn.Module | None = None,
    accumulate: int = 1,
    shuffle: bool = True,
    stay_in_eval: bool = False,
    inputs: Callable[[int, torch.Tensor], torch.Tensor] = lambda step, x: x,
) -> Callable[[int, Path, int], None]:
    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x, y, eval_x, eval_y = data(digits(seed))
        model, criterion = make_model(), loss_fn or nn.CrossEntropyLoss()
        optimizer = make_optimizer(model)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
        feed = batches(len(y), size)
        with hook(run, model, optimizer, criterion, interval):
            for step in range(steps):
                if not (stay_in_eval and step > eval_every):
                    model.train()
                if zero_grad:
                    optimizer.zero_grad()
                for _ in range(accumulate):
                    chosen = next(feed) if shuffle else torch.arange(step * size, (step + 1) * size) % len(y)
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                        loss = criterion(model(inputs(step, x[chosen])), y[chosen]) / accumulate
                    loss.backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                if rates:
                    rates.step()
                if eval_every and step % eval_every == eval_every - 1:
                    model.eval()
                    with torch.no_grad():
                        criterion(model(eval_x), eval_y)

    return train


def hook(run: Path, model: Any, optimizer: Any, loss_fn: Any, interval: int) -> Hook:
    config = SaveConfig(save_interval=interval) if interval else None
    return Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0)


def regress(
    lr: float, *, steps: int = STEPS, scale: float = 1.0, size: int = 32, noise: float = 0.0
) -> Callable[[int, Path, int], None]:
    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        bunch = load_diabetes()
        x = torch.tensor(bunch.data, dtype=torch.float32) * 20
        y = torch.tensor(bunch.target, dtype=torch.float32).unsqueeze(1)
        y = (y - y.mean()) / y.std() * scale + noise * torch.randn_like(y)
        model, loss_fn = mlp(10, 32, 32, 1), nn.MSELoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        feed = batches(350, size)
        with hook(run, model, optimizer, loss_fn, interval):
            for step in range(steps):
                chosen = next(feed)
                model.train()
                optimizer.zero_grad()
                loss_fn(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
                if step % 25 == 24:
                    model.eval()
                    with torch.no_grad():
                        loss_fn(model(x[350:]), y[350:])

    return train


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        self.cell = cell(24, 48, batch_first=True)
        self.head = nn.Linear(48, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.embed(tokens))[0]).flatten(0, 1)


class Attention(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 32), nn.Embedding(24, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, dropout=0.1)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(32, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.embed(tokens) + self.place(torch.arange(length))
        return self.head(self.blocks(hidden, mask=mask, is_causal=True)).flatten(0, 1)


def sequence(
    make_model: Callable[[], nn.Module],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    warm_up: int = 0,
    steps: int = STEPS,
) -> Callable[[int, Path, int], None]:
    """Next symbol of noisy arithmetic progressions modulo 20."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        model, loss_fn = make_model(), nn.CrossEntropyLoss()
        optimizer = make_optimizer(model)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / max(warm_up, 1)))

        def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            start, stride = torch.randint(20, (count, 1)), torch.randint(1, 5, (count, 1))
            tokens = (start + stride * torch.arange(17)) % 20
            tokens = torch.where(torch.rand(tokens.shape) < 0.05, torch.randint(20, tokens.shape), tokens)
            return tokens[:, :-1], tokens[:, 1:].flatten()

        with hook(run, model, optimizer, loss_fn, interval):
            for step in range(steps):
                tokens, targets = draw(32)
                model.train()
                optimizer.zero_grad()
                loss_fn(model(tokens), targets).backward()
                optimizer.step()
                rates.step()
                if step % 50 == 49:
                    model.eval()
                    with torch.no_grad():
                        tokens, targets = draw(128)
                        loss_fn(model(tokens), targets)

    return train


def autoencode(seed: int, run: Path, interval: int) -> None:
    torch.manual_seed(seed)
    x, _, eval_x, _ = digits(seed)
    model, loss_fn = nn.Sequential(mlp(64, 32, 8, 32, 64), nn.Sigmoid()), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    feed = batches(len(x), 64)
    with hook(run, model, optimizer, loss_fn, interval):
        for step in range(STEPS):
            chosen = x[next(feed)]
            model.train()
            optimizer.zero_grad()
            loss_fn(model(chosen), chosen.flatten(1)).backward()
            optimizer.step()
            if step % 25 == 24:
                model.eval()
                with torch.no_grad():
                    loss_fn(model(eval_x), eval_x.flatten(1))


def gan(seed: int, run: Path, interval: int) -> None:
    torch.manual_seed(seed)
    x = digits(seed)[0].flatten(1) * 2 - 1
    generator = nn.Sequential(mlp(16, 64, 64), nn.Tanh())
    critic = mlp(64, 64, 1, act=nn.LeakyReLU)
    optimizers = [torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (critic, generator)]
    feed = batches(len(x), 64)
    with hook(run, {"G": generator, "D": critic}, optimizers, None, interval):
        for _ in range(STEPS):
            real, fake = critic(x[next(feed)]), critic(generator(torch.randn(64, 16)).detach())
            optimizers[0].zero_grad()
            (functional.softplus(-real).mean() + functional.softplus(fake).mean()).backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            functional.softplus(-critic(generator(torch.randn(64, 16)))).mean().backward()
            optimizers[1].step()


def recommend(seed: int, run: Path, interval: int) -> None:
    """Sparse embeddings of users and items, binary feedback."""
    torch.manual_seed(seed)
    users, items = torch.randn(300, 4), torch.randn(200, 4)

    class Factor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(300, 8, sparse=True), nn.Embedding(200, 8, sparse=True)

        def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            return (self.user(u) * self.item(i)).sum(1)

    model, loss_fn = Factor(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.02)
    with hook(run, model, optimizer, loss_fn, interval):
        for _ in range(STEPS):
            u, i = torch.randint(300, (128,)), torch.randint(200, (128,))
            liked = ((users[u] * items[i]).sum(1) + torch.randn(128) > 0).float()
            optimizer.zero_grad()
            loss_fn(model(u, i), liked).backward()
            optimizer.step()


def frozen_backbone() -> nn.Module:
    model = cnn()
    for parameter in model[:4].parameters():
        parameter.requires_grad_(False)
    return model


def fine_tune(seed: int, run: Path, interval: int) -> None:
    """Goes on with a model that has converged: a flat, low loss from the first step."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = digits(seed)
    model, loss_fn = cnn(), nn.CrossEntropyLoss()
    warm = torch.optim.Adam(model.parameters(), lr=2e-3)
    feed = batches(len(y), 64)
    for _ in range(600):
        chosen = next(feed)
        warm.zero_grad()
        loss_fn(model(x[chosen]), y[chosen]).backward()
        warm.step()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with hook(run, model, optimizer, loss_fn, interval):
        for step in range(STEPS):
            chosen = next(feed)
            model.train()
            optimizer.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if step % 50 == 49:
                model.eval()
                with torch.no_grad():
                    loss_fn(model(eval_x), eval_y)


def curriculum(seed: int, run: Path, interval: int) -> None:
    """Classes are added on the way: the loss jumps, and comes down again."""
    torch.manual_seed(seed)
    x, y, eval_x, eval_y = digits(seed)
    model, loss_fn = cnn(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with hook(run, model, optimizer, loss_fn, interval):
        for step in range(600):
            known = torch.nonzero(y < (3 if step < 200 else 6 if step < 400 else 10)).flatten()
            chosen = known[torch.randint(len(known), (64,))]
            model.train()
            optimizer.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if step % 50 == 49:
                model.eval()
                with torch.no_grad():
                    loss_fn(model(eval_x), eval_y)


def garbage(*steps: int) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Noise instead of images at these steps."""
    return lambda step, x: x + 20 * torch.randn_like(x) if step in steps else x


def noisy_labels(share: float) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        x, y, eval_x, eval_y = data
        wrong = torch.rand(len(y)) < share
        return x, torch.where(wrong, torch.randint(10, y.shape), y), eval_x, eval_y

    return change


def imbalanced(rare: int) -> Callable[[Any], Any]:
    """Class 0 as it is, ``rare`` images of each other class, shown over and over."""

    def change(data: Any) -> Any:
        x, y, eval_x, eval_y = data
        zeros = torch.nonzero(y == 0).flatten()
        others = [torch.nonzero(y == c).flatten()[:rare] for c in range(1, 10)]
        chosen = torch.cat([zeros.repeat(12), *others])
        return x[chosen], y[chosen], eval_x, eval_y

    return change


def few(count: int, wrong: float) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        x, y, eval_x, eval_y = noisy_labels(wrong)(data)
        return x[:count], y[:count], eval_x, eval_y

    return change


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda d: (d[0] * factor, d[1], d[2] * factor, d[3])


def in_order(data: Any) -> Any:
    """Sorted by class, as a folder of folders is read."""
    x, y, eval_x, eval_y = data
    order = y.argsort()
    return x[order], y[order], eval_x, eval_y


def one_image_for_all(data: Any) -> Any:
    x, y, eval_x, eval_y = data
    return x[:1].expand_as(x), y, eval_x, eval_y


def one_entry_missing(data: Any) -> Any:
    x, y, eval_x, eval_y = data
    x = x.clone()
    x[1200, 0, 3, 3] = math.nan
    return x, y, eval_x, eval_y


def from_loader(
    take: Callable[[Any], Iterator[Any]], *, shuffle: bool = True, size: int = 64
) -> Callable[[int, Path, int], None]:
    """Trains on what ``take`` makes of a DataLoader."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x, y, _, _ = digits(seed)
        data = torch.utils.data.TensorDataset(x, y)
        feed = take(torch.utils.data.DataLoader(data, batch_size=size, shuffle=shuffle, drop_last=True))
        model, loss_fn = cnn(), nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with hook(run, model, optimizer, loss_fn, interval):
            for _ in range(200):
                images, labels = next(feed)
                optimizer.zero_grad()
                loss_fn(model(images), labels).backward()
                optimizer.step()

    return train


def all_batches(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def first_batches(loader: Any) -> Iterator[Any]:
    while True:
        yield next(iter(loader))


def few_classes_a_batch(seed: int, run: Path, interval: int) -> None:
    """Batches of 4 classes by 16 images, as metric learning draws them."""
    torch.manual_seed(seed)
    x, y, _, _ = digits(seed)
    of = [torch.nonzero(y == c).flatten() for c in range(10)]
    model, loss_fn = cnn(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with hook(run, model, optimizer, loss_fn, interval):
        for _ in range(STEPS):
            chosen = torch.cat([of[c][torch.randint(len(of[c]), (16,))] for c in torch.randperm(10)[:4].tolist()])
            optimizer.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            optimizer.step()


def two_views(apart: bool) -> Callable[[int, Path, int], None]:
    """Embeddings of two noisy views of an image shall be equal; only the variance term keeps images apart."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x = digits(seed)[0].flatten(1)
        model = mlp(64, 64, 16)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        feed = batches(len(x), 64)
        with hook(run, model, optimizer, None, interval):
            for _ in range(STEPS):
                chosen = x[next(feed)]
                one, other = (model(chosen + 0.2 * torch.randn_like(chosen)) for _ in range(2))
                spread = functional.relu(1 - one.std(0)).mean() + functional.relu(1 - other.std(0)).mean()
                optimizer.zero_grad()
                (functional.mse_loss(one, other) + (spread if apart else 0)).backward()
                optimizer.step()

    return train


def normalised_inside() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1), *cnn())


class Pixels(nn.Module):
    """Divides by itself, as many published models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body((images - 80.0) / 100.0)


def pretrained_encoder() -> nn.Module:
    """Its dropout is in eval mode, as that of a loaded model is, and nobody calls train()."""
    encoder = mlp(64, 128, 64, dropout=0.5)
    return nn.Sequential(encoder.eval(), nn.ReLU(), nn.Linear(64, 10))


def stay_as_built(make_model: Callable[[], nn.Module]) -> Callable[[int, Path, int], None]:
    """Trains without ever calling train() or eval()."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x, y, _, _ = digits(seed)
        model, loss_fn = make_model(), nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        feed = batches(len(y), 64)
        with hook(run, model, optimizer, loss_fn, interval):
            for _ in range(200):
                chosen = next(feed)
                optimizer.zero_grad()
                loss_fn(model(x[chosen]), y[chosen]).backward()
                optimizer.step()

    return train


def shuffled(data: Any) -> Any:
    x, y, eval_x, eval_y = data
    return x, y[torch.randperm(len(y))], eval_x, eval_y


def residual(depth: int) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.act, self.down = nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)
            nn.init.zeros_(self.down.weight)

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return h + self.down(self.act(self.up(self.norm(h))))

    return nn.Sequential(nn.Flatten(), *[Block() for _ in range(depth)], nn.Linear(64, 10))


def dropped_out() -> nn.Module:
    return mlp(64, 128, 64, 10, dropout=0.3)


def constant_init() -> nn.Module:
    model = mlp(64, 32, 32, 10)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.05)
    return model


def large_init() -> nn.Module:
    model = mlp(64, 128, 128, 128, 128, 128, 10)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0)
    return model


def dead_layer() -> nn.Module:
    model = mlp(64, 64, 32, 10)
    nn.init.constant_(model[3].bias, -10.0)
    return model


def not_all_in_the_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(model.parameters())[2:], lr=1e-3)


class CutOff(nn.Module):
    """What the first layers see is detached from the loss: a debugging leftover."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*list(cnn())[:7]), nn.Sequential(nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).detach())


class WithSpareHead(nn.Module):
    """A head that the pretrained model brought along and nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = cnn(), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class InBfloat16(nn.Module):
    """Weights that are kept in bfloat16, with no copy of higher precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(64, 128, 64, 10).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.bfloat16()).float()


class LogOfSoftmax(nn.Module):
    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -torch.softmax(logits, 1).log()[torch.arange(len(labels)), labels].mean()


class DistanceToItself(nn.Module):
    """A distance that is zero: the derivative of its square root is not a number."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        distance = (logits - logits.detach()).pow(2).sum(1).sqrt().mean()
        return functional.cross_entropy(logits, labels) + distance


def cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(step, STEPS) / STEPS))


def restarts(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step % 100) / 100))


BAD = ("ExplodingTensor", "DivergingLoss")

JOBS: tuple[Job, ...] = (
    Job("mlp sgd", classify(lambda: mlp(64, 64, 10), sgd(0.05))),
    Job("mlp adam", classify(lambda: mlp(64, 128, 64, 10), adam(1e-3))),
    Job("mlp batch 4", classify(lambda: mlp(64, 64, 10), sgd(0.01), size=4)),
    Job("mlp batch 1", classify(lambda: mlp(64, 64, 10), sgd(0.005, 0.0), size=1, steps=800)),
    Job("mlp full batch", classify(lambda: mlp(64, 64, 10), sgd(0.2), size=1437)),
    Job("mlp two batches an epoch", classify(lambda: mlp(64, 64, 10), sgd(0.1), size=718)),
    Job("mlp two batches, not shuffled", classify(lambda: mlp(64, 64, 10), sgd(0.1), size=718, shuffle=False)),
    Job("cnn adam", classify(cnn, adam(1e-3))),
    Job("cnn cosine", classify(cnn, sgd(0.05), schedule=cosine)),
    Job("cnn restarts", classify(cnn, sgd(0.05), schedule=restarts)),
    Job("cnn warm-up", classify(cnn, adam(2e-3), schedule=lambda s: min(1.0, (s + 1) / 200), steps=600)),
    Job("cnn long warm-up", classify(cnn, sgd(0.02), schedule=lambda s: min(1.0, (s + 1) / 1000), steps=900)),
    Job("cnn clipped", classify(cnn, sgd(0.05), clip=0.5)),
    Job("cnn, one batch of garbage", classify(cnn, adam(2e-3), inputs=garbage(240))),
    Job("cnn clipped at every step", classify(cnn, adam(1e-3), clip=0.01)),
    Job("mlp in bfloat16", classify(InBfloat16, adam(1e-3))),
    Job("cnn with a spare head", classify(WithSpareHead, adam(1e-3))),
    Job("cnn bfloat16", classify(cnn, adam(1e-3), autocast=True)),
    Job("cnn accumulating", classify(cnn, adam(1e-3), size=16, accumulate=4)),
    Job("cnn frozen backbone", classify(frozen_backbone, adam(1e-3))),
    Job("deep tanh", classify(lambda: mlp(64, 64, 64, 64, 64, 10, act=nn.Tanh), sgd(0.05))),
    Job("deep relu", classify(lambda: mlp(64, *[64] * 8, 10), adam(5e-4))),
    Job("deep batch norm", classify(lambda: mlp(64, *[64] * 10, 10, norm=True), sgd(0.05))),
    Job("sigmoid, two layers", classify(lambda: mlp(64, 64, 32, 10, act=nn.Sigmoid), adam(3e-3))),
    Job("dropout", classify(lambda: mlp(64, 256, 128, 10, dropout=0.5), adam(1e-3))),
    Job("label noise", classify(cnn, adam(5e-4), data=noisy_labels(0.2), steps=200)),
    Job("residual, zero start", classify(lambda: residual(8), adam(1e-3))),
    Job("wide", classify(lambda: mlp(64, 2048, 10), adam(3e-4))),
    Job("converged", classify(lambda: mlp(64, 256, 10), adam(3e-3), steps=800)),
    Job("imbalanced but learnt", classify(cnn, adam(1e-3), data=imbalanced(20), steps=600, eval_every=0)),
    Job("high weight decay", classify(cnn, adam(1e-3, weight_decay=0.5))),
    Job("regression", regress(3e-3, steps=200)),
    Job("regression, large targets", regress(1e-2, scale=100.0, steps=200)),
    Job("regression, small batch", regress(1e-3, size=4, steps=300)),
    Job("gru", sequence(lambda: Recurrent(nn.GRU), adam(3e-3))),
    Job("lstm", sequence(lambda: Recurrent(nn.LSTM), adam(3e-3))),
    Job("transformer", sequence(Attention, adam(2e-3), warm_up=50)),
    Job("transformer, 8 layers", sequence(lambda: Attention(8), adam(1e-3), warm_up=100)),
    Job("autoencoder", autoencode),
    Job("gan", gan),
    Job("recommender", recommend),
    Job("fine-tuning", fine_tune),
    Job("curriculum", curriculum),
    Job("raw pixels behind a batch norm", classify(normalised_inside, adam(1e-3), data=scaled(255.0))),
    Job("raw pixels that the model scales", classify(Pixels, adam(1e-3), data=scaled(255.0))),
    Job("loader", from_loader(all_batches)),
    Job("loader, not shuffled", from_loader(all_batches, shuffle=False, size=320)),
    Job("loader begun anew, shuffled", from_loader(first_batches)),
    Job("loader of one batch", from_loader(all_batches, size=1437)),
    Job("few classes a batch", few_classes_a_batch),
    Job(
        "cosine that ends when nothing is left", classify(cnn, adam(2e-3), schedule=lambda s: max(1e-3, cosine(2 * s)))
    ),
    Job("two views, kept apart", two_views(True)),
    # mistakes
    Job("two views, nothing keeps apart", two_views(False), ("CollapsedOutput",)),
    Job("raw pixels", classify(cnn, sgd(0.01), data=scaled(255.0)), ("InputNotNormalized",)),
    Job(
        "raw pixels, sigmoid",
        classify(lambda: mlp(64, 64, 10, act=nn.Sigmoid), sgd(0.05), data=scaled(255.0)),
        ("InputNotNormalized",),
    ),
    Job("one entry missing", classify(cnn, adam(1e-3), data=one_entry_missing), ("NonFiniteInput",)),
    Job("one image for all", classify(cnn, adam(1e-3), data=one_image_for_all), ("ConstantInput",)),
    Job("sorted by class", classify(cnn, sgd(0.05), data=in_order, shuffle=False), ("LabelsInOrder",)),
    Job("first batch again and again", from_loader(first_batches, shuffle=False), ("RepeatedBatch",)),
    Job("encoder left in eval mode", stay_as_built(pretrained_encoder), ("PartInEvalMode",)),
    Job(
        "cosine five times too short",
        classify(
            lambda: mlp(64, 64, 10),
            sgd(0.02),
            schedule=lambda s: max(1e-4, 0.5 * (1 + math.cos(math.pi * min(1.0, s / 80)))),
        ),
        ("LearningRateDecayedEarly",),
        80,
    ),
    Job("rate that grows", classify(cnn, sgd(1e-4), schedule=lambda s: 1.03**s), ("LearningRateGrowing", *BAD), 234),
    Job("rate 100 times too high", classify(cnn, sgd(5.0)), (*BAD, "DeadRelu", "OscillatingLoss", "StalledLoss")),
    Job("rate too high, mlp", classify(lambda: mlp(64, 64, 10), sgd(20.0)), (*BAD, "DeadRelu", "OscillatingLoss")),
    Job("rate too high, regression", regress(30.0), (*BAD, "OscillatingLoss")),
    Job(
        "rate too high, linear",
        classify(lambda: mlp(64, 10), sgd(5.0, 0.0, weight_decay=0.05)),
        ("OscillatingLoss", "UpdateTooLarge", *BAD),
    ),
    Job(
        "batches of garbage",
        classify(lambda: mlp(64, 64, 10), sgd(0.05), steps=600, inputs=garbage(160, 280, 400, 520)),
        ("LossSpike",),
        160,
    ),
    Job(
        "clipped to a thousandth",
        classify(cnn, sgd(0.05, 0.0), clip=1e-3),
        ("ClippingAlwaysActive", "StalledLoss"),
    ),
    Job("rate zero", classify(cnn, sgd(0.0)), ("ZeroLearningRate", "UnchangedTensor", "StalledLoss")),
    Job(
        "rate decayed to zero too early",
        classify(cnn, sgd(0.01), schedule=lambda s: max(0.0, 1 - s / 60)),
        ("ZeroLearningRate",),
        60,
    ),
    Job("left in eval mode", classify(dropped_out, adam(1e-3), stay_in_eval=True), ("ModelInEvalMode",), 26),
    Job("rate a million times too low", classify(cnn, sgd(1e-8)), ("StalledLoss", "UnchangedTensor", "UpdateTooSmall")),
    Job(
        "gradients never zeroed",
        classify(cnn, sgd(0.05), zero_grad=False, steps=600),
        ("GradientsNotReset",),
    ),
    Job("deep sigmoid", classify(lambda: mlp(64, *[64] * 8, 10, act=nn.Sigmoid), sgd(0.05)), ("VanishingGradient",)),
    Job(
        "deep sigmoid, adam",
        classify(lambda: mlp(64, *[64] * 12, 10, act=nn.Sigmoid), adam(1e-3)),
        ("VanishingGradient", "StalledLoss"),
    ),
    Job("dead layer", classify(dead_layer, sgd(0.01)), ("DeadRelu",)),
    Job("constant start", classify(constant_init, sgd(0.05)), ("PoorWeightInitialization",)),
    Job("too large start", classify(large_init, sgd(1e-4)), ("PoorWeightInitialization",)),
    Job(
        "layer not in the optimizer",
        classify(lambda: mlp(64, 64, 32, 10), not_all_in_the_optimizer),
        ("UnchangedTensor",),
    ),
    Job("body cut off from the loss", classify(CutOff, adam(1e-3)), ("NoGradient",)),
    Job("updates lost in bfloat16", classify(InBfloat16, adam(5e-6)), ("UpdateTooSmall",)),
    Job(
        "weights decay by half at each step",
        classify(cnn, sgd(0.3, 0.0, weight_decay=1.5)),
        ("UpdateTooLarge", "StalledLoss"),
    ),
    Job("labels shuffled", classify(cnn, sgd(0.01), data=shuffled), ("StalledLoss",)),
    Job(
        "few images by heart",
        classify(lambda: mlp(64, 512, 10), adam(1e-3), data=few(120, 0.2), size=20, steps=900),
        ("Overfit",),
    ),
    Job(
        "noisy labels by heart",
        classify(lambda: mlp(64, 512, 256, 10), adam(2e-3), data=noisy_labels(0.4), steps=900),
        ("Overfit",),
    ),
    Job(
        "rare classes given up",
        classify(cnn, sgd(0.01, 0.0), data=imbalanced(2), steps=500, eval_every=0),
        ("ClassImbalance",),
    ),
    Job(
        "logarithm of zero",
        classify(cnn, sgd(0.05), data=scaled(255.0), loss_fn=LogOfSoftmax()),
        ("ExplodingTensor", "InputNotNormalized"),
    ),
    Job("root of zero", classify(cnn, sgd(0.01), loss_fn=DistanceToItself()), ("ExplodingTensor",)),
)
