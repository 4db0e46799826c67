"""Training runs of kinds that no rule had been looked at with when they were written: the later half of the evidence.

Other tasks (segmentation, sets, graphs, ranking, counts, quantiles, denoising, flows, Q-learning, several losses in
one), other optimizers and loops, and mistakes made in jobs that stand among the healthy ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from corpus import Job, batches, hook
from corpus_held_out import Fit, dense, optimizer, shuffled, table, with_labels
from sklearn.datasets import load_iris, make_circles, make_classification, make_friedman1
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor
Train = Callable[[int, Path, int], None]
SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


def made(make: Callable[..., Any], classes: bool = True, **options: Any) -> Callable[[int], tuple[Tensor, Tensor]]:
    def data(seed: int) -> tuple[Tensor, Tensor]:
        x, y = make(random_state=seed, **options)
        labels = torch.tensor(y) if classes else torch.tensor(y, dtype=torch.float32).unsqueeze(1)
        return torch.tensor(x, dtype=torch.float32), labels

    return data


def drawn(make: Callable[[torch.Generator], tuple[Tensor, Tensor]]) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda seed: make(torch.Generator().manual_seed(seed))


# -- data ------------------------------------------------------------------------------------------------


def friedman(seed: int) -> tuple[Tensor, Tensor]:
    x, y = made(make_friedman1, False, n_samples=1000, noise=1.0)(seed)
    return x * 2 - 1, (y - y.mean()) / y.std()


def counts(g: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(1000, 6, generator=g)
    return x, torch.poisson((0.5 * x[:, :1] + 0.3 * x[:, 1:2] + 1).exp(), generator=g)


def tags(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Several labels per sample, most of them rare."""
    x = torch.randn(1200, 20, generator=g)
    return x, (x @ torch.randn(20, 8, generator=g) / 4 + 0.3 * torch.randn(1200, 8, generator=g) > 1).float()


def chirps(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of four tunes a noisy signal plays."""
    y = torch.randint(0, 4, (1000,), generator=g)
    phase = 6.3 * torch.rand(1000, 1, generator=g)
    at = torch.arange(96) / 96
    signal = torch.sin(phase + 6.3 * (4 + 3 * y[:, None]) * at)
    return (signal + 0.8 * torch.randn(1000, 96, generator=g)).unsqueeze(1), y


def discs(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of 16 x 16 and the mask of the disc in them."""
    place, size = 4 + 8 * torch.rand(500, 2, 1, 1, generator=g), 2 + 2 * torch.rand(500, 1, 1, generator=g)
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))
    mask = (((grid - place) ** 2).sum(1).sqrt() < size).float()
    return (mask + 0.6 * torch.randn(500, 16, 16, generator=g)).unsqueeze(1), mask.unsqueeze(1)


def clouds(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sets of 20 points, on a ring or in a ball."""
    y = torch.randint(0, 2, (800,), generator=g)
    points = torch.randn(800, 20, 3, generator=g)
    ring = functional.normalize(points, dim=2) * (1 + 0.2 * torch.randn(800, 20, 1, generator=g))
    return torch.where(y[:, None, None] > 0, ring, points), y


def sums(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Adding up two numbers of a sequence of 20, those that are marked."""
    numbers, marks = torch.rand(1000, 20, generator=g), torch.zeros(1000, 20)
    for half in (0, 10):
        marks[torch.arange(1000), half + torch.randint(0, 10, (1000,), generator=g)] = 1
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)


def words(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of three topics a bag of 25 words of 200 is about."""
    y = torch.randint(0, 3, (1000,), generator=g)
    common, own = torch.randint(0, 200, (1000, 25), generator=g), torch.randint(0, 30, (1000, 25), generator=g)
    return torch.where(torch.rand(1000, 25, generator=g) < 0.25, own + 60 * y[:, None], common), y


def graphs(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nodes of one of two communities; adjacency and features side by side, [graphs, nodes, nodes + features]."""
    side = torch.randint(0, 2, (200, 16), generator=g)
    chance = torch.where(side[:, :, None] == side[:, None, :], 0.5, 0.1)
    edges = (torch.rand(200, 16, 16, generator=g) < chance).float()
    features = torch.randn(200, 16, 4, generator=g) + 0.5 * (2 * side[:, :, None] - 1)
    return torch.cat([edges, features], 2), side


# -- models and losses -----------------------------------------------------------------------------------


class Waves(nn.Sequential):
    """A network over signals of one channel."""

    def __init__(self, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        layers = [nn.Conv1d(1, 16, 7, 2), nn.BatchNorm1d(16), act(), nn.Conv1d(16, 32, 5, 2), nn.BatchNorm1d(32), act()]
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = functional.relu(self.down(x))
        return self.out(torch.cat([skip, functional.relu(self.up(functional.relu(self.deep(skip))))], 1))


class Sets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = dense(3, 32, 32), dense(32, 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).mean(1))


class Messages(nn.Module):
    """Two rounds of messages along edges."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds, self.out = nn.ModuleList([nn.Linear(8, 24), nn.Linear(48, 24)]), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        edges, h = x[..., :16], x[..., 16:]
        for each in self.rounds:
            h = functional.relu(each(torch.cat([h, edges @ h / 8], 2)))
        return self.out(h).flatten(0, 1)


class Topics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(200, 16), dense(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


class Adding(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Highway(nn.Module):
    """Layers that are left out at random, with gates that begin nearly closed."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(20, 20) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer, gate in zip(self.layers, self.gates, strict=True):
            if not self.training or torch.rand(()) > 0.1:
                open_ = torch.sigmoid(gate(x))
                x = open_ * torch.relu(layer(x)) + (1 - open_) * x
        return self.head(x)


class Loss(nn.Module):
    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.compute(output, target)


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    found = torch.sigmoid(logits)
    return 1 - (2 * (found * mask).sum() + 1) / (found.sum() + mask.sum() + 1)


def pinball(output: Tensor, target: Tensor) -> Tensor:
    over = target - output
    return torch.stack(
        [torch.maximum(q * over[:, i], (q - 1) * over[:, i]) for i, q in enumerate((0.1, 0.5, 0.9))]
    ).mean()


def per_node(logits: Tensor, sides: Tensor) -> Tensor:
    return functional.cross_entropy(logits, sides.flatten())


# -- loops of another shape ------------------------------------------------------------------------------


def loop(
    make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]],
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
    rate: float = 2e-3,
    steps: int = 350,
) -> Train:
    """Minimises what ``make`` gives with a model; no loss module and no evaluation."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        model, objective = make()
        update = kind(model.parameters(), lr=rate)  # type: ignore[call-arg]
        with hook(run, model, update, None, interval):
            for _ in range(steps):
                update.zero_grad()
                objective().backward()
                update.step()

    return train


def denoiser() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A diffusion model of points on a circle: an honest loss that soon hardly falls."""
    model = dense(3, 64, 64, 2, act=nn.SiLU)

    def objective() -> Tensor:
        angle, t, noise = 6.3 * torch.rand(128, 1), torch.rand(128, 1), torch.randn(128, 2)
        point = torch.cat([angle.cos(), angle.sin()], 1)
        return functional.mse_loss(model(torch.cat([(1 - t).sqrt() * point + t.sqrt() * noise, t], 1)), noise)

    return model, objective


def flow() -> tuple[nn.Module, Callable[[], Tensor]]:
    """Coupling layers that map two moons to a normal distribution: a likelihood of any sign."""
    model = nn.ModuleList(dense(1, 32, 2, act=nn.Tanh) for _ in range(4))

    def objective() -> Tensor:
        angle = 3.14 * torch.rand(128)
        upper = torch.rand(128) < 0.5
        x = torch.stack([angle.cos() + 1.0 * ~upper, torch.where(upper, angle.sin(), 0.5 - angle.sin())], 1)
        x, log = x + 0.1 * torch.randn(128, 2), torch.zeros(128)
        for each in model:
            scale, shift = each(x[:, :1]).unbind(1)
            scale = torch.tanh(scale)
            x = torch.stack([x[:, 1] * scale.exp() + shift, x[:, 0]], 1)
            log = log + scale
        return (0.5 * (x**2).sum(1) - log).mean()

    return model, objective


def masked() -> tuple[nn.Module, Callable[[], Tensor]]:
    """Masked parts of sequences are to be filled in."""
    model = nn.Sequential(nn.Linear(24, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 24))

    def objective() -> Tensor:
        x = torch.sin(6.3 * torch.rand(64, 1) + torch.rand(64, 1) * torch.arange(24))
        hidden = torch.rand_like(x) < 0.3
        return ((model(x * ~hidden) - x)[hidden] ** 2).mean()

    return model, objective


def triplets() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A margin loss that is zero for ever more triplets."""
    model, centres = dense(10, 32, 8), torch.randn(6, 10)

    def objective() -> Tensor:
        kind = torch.randint(6, (64,))
        anchor, same, other = (
            model(centres[k] + 0.5 * torch.randn(64, 10)) for k in (kind, kind, (kind + torch.randint(1, 6, (64,))) % 6)
        )
        return functional.triplet_margin_loss(anchor, same, other, margin=1.0)

    return model, objective


def several_tasks() -> tuple[nn.Module, Callable[[], Tensor]]:
    model, truth = (
        nn.ModuleDict({"body": dense(8, 32, 32), "a": nn.Linear(32, 3), "b": nn.Linear(32, 1)}),
        torch.randn(8, 4),
    )

    def objective() -> Tensor:
        x = torch.randn(64, 8)
        h, y = torch.relu(model["body"](x)), x @ truth
        return functional.cross_entropy(model["a"](h), y[:, :3].argmax(1)) + 0.1 * functional.mse_loss(
            model["b"](h), y[:, 3:]
        )

    return model, objective


def autoregressive_mixture() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A mixture density network, where one input has two answers."""
    model = dense(1, 32, 6, act=nn.Tanh)

    def objective() -> Tensor:
        x = 2 * torch.rand(128, 1) - 1
        y = torch.where(torch.rand(128) < 0.5, x[:, 0].abs().sqrt(), -x[:, 0].abs().sqrt()) + 0.1 * torch.randn(128)
        weight, mean, spread = model(x).view(-1, 3, 2).unbind(1)
        each = torch.distributions.Normal(mean, functional.softplus(spread) + 0.05).log_prob(y[:, None])
        return -torch.logsumexp(weight.log_softmax(1) + each, 1).mean()

    return model, objective


def bad_mixture() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A spread that may become zero."""
    model = dense(1, 32, 2)

    def objective() -> Tensor:
        x = 2 * torch.rand(128, 1) - 1
        mean, spread = model(x).unbind(1)
        spread = functional.relu(spread)
        return (spread.log() + 0.5 * ((x[:, 0].sin() - mean) / spread) ** 2).mean()

    return model, objective


def q_learning(seed: int, run: Path, interval: int, rate: float = 2e-3, update_target: int = 20) -> None:
    """A walk on a line of ten places; the target moves, and the loss with it."""
    torch.manual_seed(seed)
    model = dense(10, 32, 2)
    target = copy.deepcopy(model)
    steps = torch.optim.Adam(model.parameters(), lr=rate)
    with hook(run, model, steps, None, interval):
        for step in range(500):
            place, way = torch.randint(0, 10, (64,)), torch.randint(0, 2, (64,))
            to = (place + 2 * way - 1).clamp(0, 9)
            reward = (to == 9).float()
            with torch.no_grad():
                wanted = reward + 0.9 * (to != 9) * target(functional.one_hot(to, 10).float()).amax(1)
            steps.zero_grad()
            value = model(functional.one_hot(place, 10).float())[torch.arange(64), way]
            functional.smooth_l1_loss(value, wanted).backward()
            steps.step()
            if step % update_target == 0:
                target.load_state_dict(model.state_dict())


def sharpness_aware(seed: int, run: Path, interval: int) -> None:
    """Two backward passes an update, the first to a worse place nearby."""
    torch.manual_seed(seed)
    x, y = made(make_circles, n_samples=800, noise=0.1, factor=0.5)(seed)
    model, loss_fn = dense(2, 32, 32, 2), nn.CrossEntropyLoss()
    steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    feed = batches(len(y), 32)
    with hook(run, model, steps, loss_fn, interval):
        for _ in range(300):
            chosen = next(feed)
            loss_fn(model(x[chosen]), y[chosen]).backward()
            with torch.no_grad():
                norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm() + 1e-12
                moves = [0.05 * p.grad / norm for p in model.parameters()]
                for parameter, move in zip(model.parameters(), moves, strict=True):
                    parameter.add_(move)
            steps.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            with torch.no_grad():
                for parameter, move in zip(model.parameters(), moves, strict=True):
                    parameter.sub_(move)
            steps.step()
            steps.zero_grad()


def low_rank(seed: int, run: Path, interval: int) -> None:
    """A frozen model, and an addition of low rank that begins at zero."""
    torch.manual_seed(seed)
    x, y = iris.data(seed)
    base = dense(4, 64, 64, 3)
    warm = torch.optim.Adam(base.parameters(), lr=5e-3)
    for _ in range(60):
        warm.zero_grad()
        functional.cross_entropy(base(x), y).backward()
        warm.step()
    base.requires_grad_(False)
    down, up = nn.Linear(64, 4, bias=False), nn.Linear(4, 3, bias=False)
    nn.init.zeros_(up.weight)
    model, loss_fn = nn.ModuleDict({"base": base, "down": down, "up": up}), nn.CrossEntropyLoss()
    steps = torch.optim.AdamW([*down.parameters(), *up.parameters()], lr=5e-3)
    feed = batches(len(y), 16)
    with hook(run, model, steps, loss_fn, interval):
        for _ in range(300):
            chosen = next(feed)
            h = base[:-1](x[chosen])
            steps.zero_grad()
            loss_fn(base[-1](h) + up(down(h)), y[chosen]).backward()
            steps.step()


def hinge_gan(seed: int, run: Path, interval: int) -> None:
    torch.manual_seed(seed)
    norm = nn.utils.parametrizations.spectral_norm
    critic = nn.Sequential(norm(nn.Linear(2, 32)), nn.LeakyReLU(0.2), norm(nn.Linear(32, 1)))
    maker = dense(4, 32, 2)
    both = [torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.0, 0.9)) for m in (critic, maker)]
    with hook(run, {"critic": critic, "maker": maker}, both, None, interval):
        for _ in range(300):
            angle = 6.3 * torch.rand(64, 1)
            real = torch.cat([angle.cos(), angle.sin()], 1)
            both[0].zero_grad()
            fake = maker(torch.randn(64, 4)).detach()
            (functional.relu(1 - critic(real)).mean() + functional.relu(1 + critic(fake)).mean()).backward()
            both[0].step()
            both[1].zero_grad()
            (-critic(maker(torch.randn(64, 4))).mean()).backward()
            both[1].step()


def proximal(seed: int, run: Path, interval: int, rate: float = 3e-3) -> None:
    """Four epochs over each batch of experience, clipped: PPO of a bandit."""
    torch.manual_seed(seed)
    policy, best = dense(5, 32, 4, act=nn.Tanh), torch.randn(5, 4)
    steps = torch.optim.Adam(policy.parameters(), lr=rate)
    with hook(run, policy, steps, None, interval):
        for _ in range(100):
            state = torch.randn(128, 5)
            with torch.no_grad():
                old = torch.distributions.Categorical(logits=policy(state))
                action = old.sample()
                reward = (state @ best).gather(1, action[:, None])[:, 0]
                gain, before = (reward - reward.mean()) / reward.std(), old.log_prob(action)
            for _ in range(4):
                now = torch.distributions.Categorical(logits=policy(state))
                ratio = (now.log_prob(action) - before).exp()
                clipped = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
                steps.zero_grad()
                (-clipped.mean() - 0.01 * now.entropy().mean()).backward()
                steps.step()


# -- the list --------------------------------------------------------------------------------------------

iris = Fit(table(load_iris), lambda: dense(4, 16, 3), size=16, optimizer=optimizer(Adam, 5e-3), steps=300)
circles = Fit(made(make_circles, n_samples=800, noise=0.1, factor=0.5), lambda: dense(2, 32, 32, 2))
many = Fit(
    made(make_classification, n_samples=1500, n_features=20, n_informative=8, n_classes=3, flip_y=0.1),
    lambda: dense(20, 32, 3),
    optimizer=optimizer(SGD, 0.02, momentum=0.9),
    steps=350,
)
regression = Fit(friedman, lambda: dense(10, 32, 32, 1), loss=nn.MSELoss, optimizer=optimizer(Adam, 2e-3), steps=300)
poisson = Fit(drawn(counts), lambda: dense(6, 32, 1), loss=nn.PoissonNLLLoss, steps=300)
multi = Fit(drawn(tags), lambda: dense(20, 32, 8), loss=nn.BCEWithLogitsLoss, steps=350)
signal = Fit(drawn(chirps), Waves, steps=250)
segment = Fit(drawn(discs), UNet, loss=lambda: Loss(dice), optimizer=optimizer(Adam, 5e-3), steps=250, size=16)
points = Fit(drawn(clouds), Sets, optimizer=optimizer(Adam, 3e-3), steps=300)
adding = Fit(
    drawn(sums),
    lambda: Adding(nn.GRU(2, 32, batch_first=True)),
    loss=nn.MSELoss,
    optimizer=optimizer(Adam, 3e-3),
    clip=1.0,
)
topics = Fit(drawn(words), Topics, optimizer=optimizer(Adam, 3e-3), steps=200)
nodes = Fit(drawn(graphs), Messages, loss=lambda: Loss(per_node), steps=300, size=16)
quantiles = Fit(friedman, lambda: dense(10, 32, 3), loss=lambda: Loss(pinball), steps=300)

_BAD = ("ExplodingTensor", "DivergingLoss")
_HIGH = (*_BAD, "UpdateTooLarge", "OscillatingLoss", "DeadRelu", "StalledLoss", "LossNotDecreasing", "MissingWarmUp")
_STILL = ("StalledLoss", "UnchangedTensor", "VanishingGradient", "UpdateTooSmall")


def never_zeroed(step: int, model: nn.Module, steps: Any) -> None:
    steps.zero_grad = lambda: None


def to_eval(step: int, model: nn.Module, steps: Any) -> None:
    if step > 30:
        model.eval()


def equal_start(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = make()
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.05)
        return model

    return build


def dead(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = make()
        nn.init.constant_(model[2].bias, -20.0)
        return model

    return build


def bfloat16_weights() -> nn.Module:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dense(20, 64, 3).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.bfloat16()).float()

    return Low()


def missing_entry(data: Callable[[int], tuple[Tensor, Tensor]]) -> Callable[[int], tuple[Tensor, Tensor]]:
    def make(seed: int) -> tuple[Tensor, Tensor]:
        x, y = data(seed)
        x[100].view(-1)[2] = math.inf
        return x, y

    return make


def ordered(data: Callable[[int], tuple[Tensor, Tensor]]) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Each class in a row, as it would come from a folder per class; batches follow the order."""

    def make(seed: int) -> tuple[Tensor, Tensor]:
        x, y = data(seed)
        order = y.argsort()
        return x[order], y[order]

    return make


def in_turn(fit: Fit, steps: int = 400, size: int = 16) -> Train:
    """The samples as they lie, never shuffled."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x, y = fit.data(seed)
        model, loss_fn = fit.model(), fit.options["loss"]()
        update = fit.options["optimizer"](model)
        with hook(run, model, update, loss_fn, interval):
            for step in range(steps):
                chosen = torch.arange(step * size, (step + 1) * size) % len(y)
                update.zero_grad()
                loss_fn(model(x[chosen]), y[chosen]).backward()
                update.step()

    return train


UNSEEN: tuple[Job, ...] = (
    Job("iris", iris),
    Job("iris, nadam", iris.but(optimizer=optimizer(torch.optim.NAdam, 3e-3))),
    Job("iris, adadelta", iris.but(optimizer=optimizer(torch.optim.Adadelta, 1.0))),
    Job("iris, low rank on a frozen model", low_rank),
    Job("circles", circles),
    Job(
        "circles, adamax, elu",
        circles.but(model=lambda: dense(2, 32, 32, 2, act=nn.ELU), optimizer=optimizer(torch.optim.Adamax, 5e-3)),
    ),
    Job("circles, sharpness aware", sharpness_aware),
    Job("circles, full batch of rprop", circles.but(optimizer=optimizer(torch.optim.Rprop, 1e-3), size=640, steps=150)),
    Job("three classes", many),
    Job("three classes, highway with random depth", many.but(model=Highway, optimizer=optimizer(Adam, 2e-3))),
    Job("three classes, exponential decay", many.but(rate=lambda s: 0.985**s)),
    Job("three classes, batch of 6", many.but(size=6, optimizer=optimizer(SGD, 0.003, momentum=0.9))),
    Job("three classes, 1 in 10 labels wrong, decayed", many.but(optimizer=optimizer(AdamW, 2e-3, weight_decay=0.1))),
    Job("friedman", regression),
    Job("friedman, averaged sgd", regression.but(optimizer=optimizer(torch.optim.ASGD, 0.05))),
    Job(
        "friedman, restarts", regression.but(rate=lambda s: 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (s % 75) / 75)))
    ),
    Job("friedman, quantiles", quantiles),
    Job("friedman, mish", regression.but(model=lambda: dense(10, 64, 64, 64, 1, act=nn.Mish))),
    Job("counts", poisson),
    Job("tags", multi),
    Job(
        "tags, heavy dropout",
        multi.but(model=lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.6), nn.Linear(64, 8))),
    ),
    Job("chirps", signal),
    Job(
        "chirps, hard swish, one cycle",
        signal.but(
            model=lambda: Waves(nn.Hardswish),
            rate=lambda s: math.sin(math.pi * (s + 1) / 251),
            optimizer=optimizer(SGD, 0.2),
        ),
    ),
    Job("discs, dice", segment),
    Job("discs, per pixel", segment.but(loss=nn.BCEWithLogitsLoss)),
    Job("point clouds", points),
    Job("adding", adding),
    Job(
        "adding, lstm",
        adding.but(model=lambda: Adding(nn.LSTM(2, 32, batch_first=True)), optimizer=optimizer(Adam, 3e-3)),
    ),
    Job("topics", topics),
    Job("graph communities", nodes),
    Job("denoising diffusion", loop(denoiser, kind=AdamW, rate=2e-3)),
    Job("coupling flow", loop(flow)),
    Job("masked parts", loop(masked)),
    Job("triplets", loop(triplets)),
    Job("two tasks in one loss", loop(several_tasks)),
    Job("mixture density", loop(autoregressive_mixture, kind=Adam, rate=5e-3)),
    Job("q-learning", q_learning),
    Job("hinge gan, spectral norm", hinge_gan),
    Job("proximal policy", proximal),
    # mistakes
    Job("iris, rate far too high", iris.but(optimizer=optimizer(SGD, 50.0)), _HIGH),
    Job(
        "iris, labels shuffled apart",
        iris.but(
            data=with_labels(iris.data, shuffled),
            model=lambda: dense(4, 256, 256, 3),
            steps=700,
            eval_every=20,
            optimizer=optimizer(Adam, 3e-3),
        ),
        ("LabelsLookShuffled", "Overfit", "StalledLoss", "NoBetterThanGuessing"),
    ),
    Job("circles, equal weights", circles.but(model=equal_start(circles.model)), ("PoorWeightInitialization",)),
    Job(
        "circles, ten sigmoid layers",
        circles.but(model=lambda: dense(2, *[24] * 10, 2, act=nn.Sigmoid)),
        ("VanishingGradient", "StalledLoss"),
    ),
    Job(
        "circles, head not in the optimizer",
        circles.but(optimizer=lambda m: Adam(list(m.parameters())[:-2], lr=2e-3)),
        ("UnchangedTensor",),
    ),
    Job(
        "circles, gradients never reset",
        circles.but(around=never_zeroed, optimizer=optimizer(SGD, 0.05)),
        ("GradientsNotReset",),
    ),
    Job("three classes, rate zero after a tenth", many.but(rate=lambda s: float(s < 35)), ("ZeroLearningRate",), 35),
    Job("three classes, in order", in_turn(many.but(data=ordered(many.data))), ("LabelsInOrder",)),
    Job(
        "three classes, weights in bfloat16, tiny rate",
        many.but(model=bfloat16_weights, optimizer=optimizer(SGD, 1e-5)),
        _STILL,
    ),
    Job("three classes, infinite entry", many.but(data=missing_entry(many.data)), ("NonFiniteInput",)),
    Job(
        "three classes, learned by heart",
        many.but(
            data=lambda s: tuple(t[:150] for t in many.data(s)),
            model=lambda: dense(20, 512, 3),
            optimizer=optimizer(Adam, 2e-3),
            steps=700,
            eval_every=20,
        ),
        ("Overfit",),
    ),
    Job("three classes, clipped to nothing", many.but(clip=1e-7), (*_STILL, "ClippingAlwaysActive")),
    Job(
        "three classes, raw units",
        many.but(inputs=lambda s, x: 500 * x),
        (*_HIGH, "InputNotNormalized", "PoorWeightInitialization"),
    ),
    Job("friedman, rate too high", regression.but(optimizer=optimizer(SGD, 3.0)), _HIGH),
    Job(
        "friedman, sign turned",
        regression.but(loss=lambda: Loss(lambda o, t: -functional.mse_loss(o, t))),
        (*_BAD, "UnboundedLoss", "LossNotDecreasing", "ExplodingActivation"),
    ),
    Job("friedman, rate a millionth", regression.but(optimizer=optimizer(SGD, 1e-8), steps=1000), _STILL),
    Job(
        "friedman, spikes",
        regression.but(
            inputs=lambda s, x: x + 40 * torch.randn_like(x) if s in (200, 290, 380) else x,
            optimizer=optimizer(SGD, 0.03),
            steps=500,
        ),
        ("LossSpike", *_BAD),
        200,
    ),
    Job(
        "friedman, short schedule",
        regression.but(optimizer=optimizer(SGD, 0.01), rate=lambda s: max(1e-4, 1 - s / 60), steps=400),
        ("LearningRateDecayedEarly",),
        60,
    ),
    Job("counts, exponent overflows", poisson.but(optimizer=optimizer(SGD, 2.0)), _HIGH),
    Job(
        "tags, decayed away",
        multi.but(optimizer=optimizer(SGD, 0.3, weight_decay=1.5)),
        (*_STILL, "UpdateTooLarge", "LossNotDecreasing", "CollapsedOutput"),
    ),
    Job("chirps, left in eval mode", signal.but(around=to_eval), ("ModelInEvalMode",), 30),
    Job(
        "chirps, growing rate",
        signal.but(rate=lambda s: 1.05**s, optimizer=optimizer(SGD, 1e-3), steps=350),
        ("LearningRateGrowing", *_BAD),
    ),
    Job("discs, rate too high", segment.but(optimizer=optimizer(SGD, 3e3)), (*_HIGH, "CollapsedOutput", "NoGradient")),
    Job(
        "point clouds, dead layer",
        points.but(model=lambda: nn.Sequential(nn.Flatten(), *dead(lambda: dense(60, 32, 32, 2))())),
        ("DeadRelu",),
    ),
    Job(
        "adding, exploding",
        adding.but(
            model=lambda: Adding(nn.RNN(2, 32, batch_first=True, nonlinearity="relu")),
            optimizer=optimizer(SGD, 2.0),
            clip=0.0,
        ),
        _HIGH,
    ),
    Job("topics, one bag for all", topics.but(inputs=lambda s, x: x[:1].expand_as(x)), ("ConstantInput",)),
    Job("graph, rate too high", nodes.but(optimizer=optimizer(Adam, 3.0)), _HIGH),
    Job("diffusion, no warm-up at a high rate", loop(denoiser, kind=Adam, rate=3.0), _HIGH),
    Job("mixture, logarithm of zero", loop(bad_mixture, kind=Adam, rate=5e-2), _BAD),
    Job("proximal policy, rate too high", lambda s, r, i: proximal(s, r, i, 5.0), (*_HIGH, "SaturatedActivation")),
)


JOBS = tuple(replace(job, name=f"unseen: {job.name}") for job in UNSEEN)
