"""More runs for tuning: a real mistake for rules that others seldom show, and healthy jobs that look like one of them.

Healthy ones are easy by nature, begin where others end, grow, restart, or are noisy by design.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from corpus import Job, adam, batches, classify, cnn, digits, few, hook, mlp, noisy_labels, sgd
from corpus_held_out import (  # fmt: skip
    SGD,
    Adam,
    AdamW,
    Fit,
    dense,
    language,
    optimizer,
    swiss,
    two_moons,
    wave,
    wine,
)
from torch import nn
from torch.nn import functional

from stepwatch.probe import Hook, SaveConfig

Tensor = torch.Tensor
Train = Callable[[int, Path, int], None]


# -- healthy: easy by nature -----------------------------------------------------------------------------


def xor(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(50, 1)
    return 2 * x - 1, (x[:, 0] != x[:, 1]).long()


def parities(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(1200, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long()


# -- healthy: another objective --------------------------------------------------------------------------


def actor_critic(seed: int, run: Path, interval: int) -> None:
    """A policy gradient with a learnt baseline; both losses in one, of both signs."""
    torch.manual_seed(seed)
    body, policy, value = mlp(6, 32, act=nn.Tanh), nn.Linear(32, 4), nn.Linear(32, 1)
    model = nn.ModuleDict({"body": body, "policy": policy, "value": value})
    best = torch.randn(6, 4)
    steps = torch.optim.Adam(model.parameters(), lr=3e-3)
    with hook(run, model, steps, None, interval):
        for _ in range(400):
            state = torch.randn(32, 6)
            hidden = torch.tanh(body(state))
            choice = torch.distributions.Categorical(logits=policy(hidden))
            action = choice.sample()
            reward = (state @ best).gather(1, action[:, None])[:, 0] + torch.randn(32)
            expected = value(hidden)[:, 0]
            gain = (reward - expected).detach()
            steps.zero_grad()
            (-(choice.log_prob(action) * gain).mean() + functional.mse_loss(expected, reward) * 0.01).backward()
            steps.step()


def wasserstein(seed: int, run: Path, interval: int) -> None:
    """A critic that is trained five times as often as the generator, clipped: its loss is below zero."""
    torch.manual_seed(seed)
    x = digits(seed)[0].flatten(1) * 2 - 1
    generator, critic = nn.Sequential(mlp(16, 64, 64), nn.Tanh()), mlp(64, 64, 1, act=nn.LeakyReLU)
    both = [torch.optim.RMSprop(m.parameters(), lr=5e-4) for m in (critic, generator)]
    feed = batches(len(x), 64)
    with hook(run, {"G": generator, "C": critic}, both, None, interval):
        for step in range(400):
            real, fake = critic(x[next(feed)]).mean(), critic(generator(torch.randn(64, 16)).detach()).mean()
            both[0].zero_grad()
            (fake - real).backward()
            both[0].step()
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-0.05, 0.05)
            if step % 5 == 4:
                both[1].zero_grad()
                (-critic(generator(torch.randn(64, 16))).mean()).backward()
                both[1].step()


def fine_tune_all(rate: float, schedule: Callable[[int], float] = lambda step: 1.0) -> Train:
    """A head for other labels on a body that knows the images, all of it trained on: begins at its end."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x, y, eval_x, eval_y = digits(seed)
        model, loss_fn = cnn(), nn.CrossEntropyLoss()
        before = torch.optim.Adam(model.parameters(), lr=2e-3)
        feed = batches(len(y), 64)
        for _ in range(300):
            chosen = next(feed)
            before.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            before.step()
        model[-1] = nn.Linear(64, 5)
        steps = torch.optim.AdamW(model.parameters(), lr=rate)
        rates = torch.optim.lr_scheduler.LambdaLR(steps, schedule)
        with hook(run, model, steps, loss_fn, interval):
            for step in range(300):
                chosen = next(feed)
                model.train()
                steps.zero_grad()
                loss_fn(model(x[chosen]), y[chosen] // 2).backward()
                steps.step()
                rates.step()
                if step % 30 == 29:
                    model.eval()
                    with torch.no_grad():
                        loss_fn(model(eval_x), eval_y // 2)

    return train


def padded(lengths: tuple[int, int]) -> Train:
    """Which of two tokens a sequence holds more often; sequences are padded to 48."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)

        class Bag(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.head = nn.Embedding(12, 16, padding_idx=0), nn.Linear(16, 2)

            def forward(self, tokens: Tensor) -> Tensor:
                known = (tokens != 0).float().unsqueeze(2)
                return self.head((self.embed(tokens) * known).sum(1) / known.sum(1))

        model, loss_fn = Bag(), nn.CrossEntropyLoss()
        steps = torch.optim.Adam(model.parameters(), lr=5e-3)
        with hook(run, model, steps, loss_fn, interval):
            for _ in range(250):
                tokens = torch.randint(1, 12, (32, 48))
                tokens[torch.arange(48) >= torch.randint(*lengths, (32, 1))] = 0
                steps.zero_grad()
                loss_fn(model(tokens), ((tokens == 1).sum(1) > (tokens == 2).sum(1)).long()).backward()
                steps.step()

    return train


# -- mistakes --------------------------------------------------------------------------------------------


class HalfGradient(torch.autograd.Function):
    """The gradient passes through float16, as under autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.half().float()


def mixed_precision(weight: float) -> Train:
    """A loss of ``weight`` times the sum over a batch, under a GradScaler; the rate makes up for it."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x, y, _, _ = digits(seed)
        model = mlp(64, 64, 10)
        steps = torch.optim.SGD(model.parameters(), lr=0.05 / (64 * weight))
        scaler = torch.amp.GradScaler("cpu")
        feed = batches(len(y), 64)
        with hook(run, model, steps, None, interval):
            for _ in range(300):
                chosen = next(feed)
                steps.zero_grad()
                logits = HalfGradient.apply(model(x[chosen]))
                scaler.scale(weight * functional.cross_entropy(logits, y[chosen], reduction="sum")).backward()
                scaler.step(steps)
                scaler.update()

    return train


class Towering(nn.Module):
    """Hidden layers that nothing holds, before a normalisation that hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Sequential(nn.LayerNorm(64, elementwise_affine=False), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def growing(model: Callable[[], nn.Module], per_step: float, steps: int = 500) -> Train:
    """Weight decay with the wrong sign."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        x, y, _, _ = digits(seed)
        net, loss_fn = model(), nn.CrossEntropyLoss()
        update = torch.optim.SGD(net.parameters(), lr=0.05)
        feed = batches(len(y), 32)
        y = torch.where(torch.rand(len(y)) < 0.3, torch.randint(10, y.shape), y)
        with hook(run, net, update, loss_fn, interval):
            for _ in range(steps):
                chosen = next(feed)
                update.zero_grad()
                loss_fn(net(x[chosen]), y[chosen]).backward()
                update.step()
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter.mul_(1 + per_step)

    return train


class LookUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0
        self.attention, self.head = nn.MultiheadAttention(16, 1, batch_first=True), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.attention(self.scale * x, x, x, need_weights=True)
        return self.head(found[:, 0])


def look_up(scale: Callable[[int], float]) -> Train:
    """Attention that has to find the value behind a key; from a scale on it sees single positions only."""

    def train(seed: int, run: Path, interval: int) -> None:
        torch.manual_seed(seed)
        model = LookUp()
        update = torch.optim.Adam(model.parameters(), lr=5e-3)
        kept = ["losses", "multiheadattention_output"]
        config = SaveConfig(save_interval=interval) if interval else None
        with Hook(run, model=model, optimizer=update, include_collections=kept, save_config=config, system_interval=0):
            for step in range(400):
                keys, values = torch.randint(8, (32, 6)), torch.randint(8, (32, 6))
                place = torch.randint(1, 6, (32,))
                keys[:, 0] = keys[torch.arange(32), place]
                wanted = values[torch.arange(32), place]
                x = torch.cat([functional.one_hot(keys, 8), functional.one_hot(values, 8)], -1).float()
                update.zero_grad()
                model.scale = scale(step)
                functional.cross_entropy(model(x), wanted).backward()
                update.step()

    return train


def _replica(rank: int, bypassed: bool, seed: int, run: Path, interval: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(seed)
    x, y, _, _ = digits(seed)
    inner, loss_fn = mlp(64, 32, 10), nn.CrossEntropyLoss()
    model = nn.parallel.DistributedDataParallel(inner)
    called = inner if bypassed else model
    update = torch.optim.Adam(inner.parameters(), lr=2e-3)
    torch.manual_seed(seed + rank)
    feed = batches(len(y), 32)
    with hook(run, inner, update, loss_fn, interval):
        for _ in range(200):
            chosen = next(feed)
            update.zero_grad()
            loss_fn(called(x[chosen]), y[chosen]).backward()
            update.step()
    torch.distributed.destroy_process_group()


@torch.no_grad()
def one_row_for_all() -> nn.Module:
    """All units of the hidden layers begin as one, in what they get and in what they give."""
    model = mlp(64, 64, 64, 10, act=nn.Tanh)
    for index, module in enumerate(model):
        if isinstance(module, nn.Linear):
            module.weight[:] = module.weight[:1] if index == 1 else module.weight[:, :1].mean(0)
            module.bias.zero_()
    nn.init.xavier_normal_(model[-1].weight[:, :1])
    model[-1].weight[:] = model[-1].weight[:, :1]
    return model


def replicas(bypassed: bool) -> Train:
    """Two processes with DistributedDataParallel, perhaps past the wrapper."""

    def train(seed: int, run: Path, interval: int) -> None:
        context = multiprocessing.get_context("spawn")
        meeting = run.parent / "meeting"
        arguments = (bypassed, seed, run, interval, meeting)
        ranks = [context.Process(target=_replica, args=(rank, *arguments)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(300)
            if process.exitcode != 0:
                for other in ranks:
                    other.terminate()
                raise RuntimeError(f"a replica ended with {process.exitcode}")

    return train


def answers_inside(training: bool, evaluation: bool) -> Callable[[Any], Any]:
    """The label in the first row of pixels."""

    def change(data: Any) -> Any:
        x, y, eval_x, eval_y = data
        return inside(x, y) if training else x, y, inside(eval_x, eval_y) if evaluation else eval_x, eval_y

    def inside(x: Tensor, y: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0, 0, :] = 0
        x[torch.arange(len(y)), 0, 0, y % 8] = 4.0 * (1 + (y >= 8))
        return x

    return change


def shuffled_training(data: Any) -> Any:
    x, y, eval_x, eval_y = data
    return x[:500], y[torch.randperm(len(y))][:500], eval_x, eval_y


def deep_gelu(rate: float, warm_up: int, width: int = 512) -> Fit:
    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(step, 400) / 400))

    layers = (3, width, width, width, 1)
    return swiss.but(model=lambda: dense(*layers, act=nn.GELU), optimizer=optimizer(Adam, rate), rate=schedule)


def restarting(step: int) -> float:
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step % 80) / 80))


def one_cycle(step: int) -> float:
    return min((step + 1) / 120, max(1e-4, (400 - step) / 280))


HARD: tuple[Job, ...] = (
    Job("xor of four points", Fit(xor, lambda: dense(2, 16, 2, act=nn.Tanh), optimizer=optimizer(Adam, 0.02), size=8)),
    Job("quadrants", Fit(parities, lambda: dense(2, 32, 2), optimizer=optimizer(Adam, 0.01))),
    Job("wine, solved and trained on", wine.but(optimizer=optimizer(Adam, 0.01), steps=600, eval_every=0)),
    Job("no weight decay, growing", classify(lambda: mlp(64, 128, 10, norm=True), sgd(0.5, 0.0), steps=700)),
    Job("batch norm at a high rate", classify(lambda: mlp(64, 64, 64, 10, norm=True), sgd(1.0, 0.0), steps=600)),
    Job("separable, no weight decay", two_moons.but(optimizer=optimizer(SGD, 0.5), steps=900)),
    Job("large batch, high rate", classify(cnn, sgd(0.1), size=700, steps=200)),
    Job("wine, large batch", wine.but(size=140, optimizer=optimizer(SGD, 0.3))),
    Job("fine-tuning all of it", fine_tune_all(3e-4)),
    Job("fine-tuning, warmed up", fine_tune_all(1e-3, lambda s: min(1.0, (s + 1) / 60))),
    Job("actor and critic", actor_critic),
    Job("critic of a Wasserstein distance", wasserstein),
    Job("restarts every 80 steps", two_moons.but(rate=restarting, optimizer=optimizer(SGD, 0.2, momentum=0.9))),
    Job("restarts, adam", swiss.but(rate=restarting, optimizer=optimizer(Adam, 5e-3))),
    Job("one cycle, high", swiss.but(rate=one_cycle, optimizer=optimizer(SGD, 0.05, momentum=0.9))),
    Job("one cycle, transformer", language.but(rate=one_cycle, optimizer=optimizer(AdamW, 3e-3))),
    Job("half padding", padded((12, 36))),
    Job("mixed precision, mean loss", mixed_precision(1 / 64)),
    Job("attention that looks it up", look_up(lambda step: 3.0)),
    Job("two replicas", replicas(False)),
    Job("deep gelu, warmed up", deep_gelu(0.04, 100)),
    Job("high rate at once, comes back", swiss.but(optimizer=optimizer(Adam, 0.1), rate=lambda s: 0.99**s, steps=240)),
    Job("rmsprop, cold", wave.but(optimizer=optimizer(torch.optim.RMSprop, 3e-3))),
    Job("noisy labels, short", classify(cnn, adam(1e-3), data=noisy_labels(0.3), steps=150)),
    Job("few images, light", classify(lambda: mlp(64, 32, 10, dropout=0.3), adam(1e-3), data=few(300, 0.0), steps=200)),
    # mistakes
    Job("the label among the pixels", classify(cnn, adam(2e-3), data=answers_inside(True, True)), ("SolvedAtOnce",)),
    Job(
        "labels shuffled, learned by heart",
        classify(lambda: mlp(64, 512, 512, 10), adam(1e-3), data=shuffled_training, steps=500, eval_every=20),
        ("LabelsLookShuffled",),
    ),
    Job("loss summed over everything", mixed_precision(2e5), ("LossScaleCollapse",)),
    Job("activations that nothing holds", growing(Towering, 0.012), ("ExplodingActivation", "WeightNormGrowth")),
    Job(
        "weight decay with the wrong sign",
        growing(lambda: mlp(64, 64, 10, norm=True), 0.003, 700),
        ("WeightNormGrowth",),
    ),
    Job(
        "attention sees one position", look_up(lambda step: 3.0 if step < 150 else 3000.0), ("AttentionCollapse",), 150
    ),
    Job(
        "one unit many times over",
        classify(one_row_for_all, adam(1e-3)),
        ("SymmetricUnits", "PoorWeightInitialization"),
    ),
    Job("mostly padding", padded((2, 10)), ("MostlyPadding",)),
    Job("replicas past their wrapper", replicas(True), ("ReplicaDrift",)),
    Job("deep gelu, no warm-up", deep_gelu(0.04, 1), ("MissingWarmUp",)),
)
JOBS = tuple(replace(job, name=f"hard: {job.name}") for job in HARD)
