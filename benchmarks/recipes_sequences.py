"""Training scripts about text, series, graphs, games and equations as tutorials have them, and their slips."""

from __future__ import annotations

import copy
import math
from collections import deque
from pathlib import Path

import torch
from corpus import batches, hook
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

Tensor = torch.Tensor


def characters() -> tuple[Tensor, int]:
    """English text as numbers, and how many characters it has: what scikit-learn says of its data."""
    loads = (load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine)
    text = "\n".join(load()["DESCR"] for load in loads)
    known = sorted(set(text))
    return torch.tensor([known.index(c) for c in text]), len(known)


class Attending(nn.Module):
    """Causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attn(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*parts, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))


class Gpt(nn.Module):
    """nanoGPT, for characters."""

    def __init__(self, known: int, width: int = 48) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(known, width), nn.Embedding(32, width)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            parts = (nn.LayerNorm(width), Attending(width, 4), nn.LayerNorm(width), mlp)
            self.blocks.append(nn.ModuleList(parts))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, known, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for norm, attending, other_norm, mlp in self.blocks:
            x = x + attending(norm(x))
            x = x + mlp(other_norm(x))
        return self.head(self.norm(x))


def gpt(seed: int, run: Path, interval: int, *, rate: float = 3e-3, stops: bool = True) -> None:
    """A language model of characters: AdamW, warm-up and cosine, clipping at 1, the mean of some evaluation batches."""
    torch.manual_seed(seed)
    text, known = characters()
    cut = int(0.9 * len(text))
    model = Gpt(known)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)

    def share(step: int) -> float:
        return (step + 1) / 30 if step < 30 else 0.1 + 0.45 * (1 + math.cos(math.pi * step / 300))

    def some(begin: int, end: int) -> tuple[Tensor, Tensor]:
        places = torch.randint(begin, end - 33, (16, 1)) + torch.arange(32)
        return text[places], text[places + 1]

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    with hook(run, model, optimizer, None, interval) as recorder:
        for step in range(300):
            x, y = some(0, cut)
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            if stops:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 30 == 29:
                model.eval()
                with torch.no_grad():
                    pairs = [some(cut, len(text)) for _ in range(4)]
                    losses = [functional.cross_entropy(model(a).flatten(0, 1), b.flatten()) for a, b in pairs]
                recorder.log("val_loss", float(torch.stack(losses).mean()))
                model.train()


class Letters(nn.Module):
    """A recurrent network by hand."""

    def __init__(self, known: int) -> None:
        super().__init__()
        self.i2h, self.i2o = nn.Linear(known + 64, 64), nn.Linear(known + 64, known)

    def forward(self, letter: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([letter, hidden], 1)
        return self.i2o(both).log_softmax(1), self.i2h(both)


def names(seed: int, run: Path, interval: int, *, rate: float = 5e-3) -> None:
    """Called for each letter, updated by hand after every name, without an optimizer."""
    torch.manual_seed(seed)
    text, known = characters()
    model, criterion = Letters(known), nn.NLLLoss()
    with hook(run, model, None, None, interval):
        for _ in range(150):
            place = int(torch.randint(len(text) - 13, ()))
            line = functional.one_hot(text[place : place + 12], known).float()
            hidden, loss = torch.zeros(1, 64), torch.zeros(())
            model.zero_grad()
            for letter, wanted in zip(line, text[place + 1 :], strict=False):
                output, hidden = model(letter[None], hidden)
                loss = loss + criterion(output, wanted[None])
            loss.backward()
            for parameter in model.parameters():
                parameter.data.add_(parameter.grad.data, alpha=-rate)


class Sentiment(nn.Module):
    """Words, packed by length, through an LSTM of two directions."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.embed, self.lstm = (
            nn.Embedding(100, 24, padding_idx=0),
            nn.LSTM(24, 32, batch_first=True, bidirectional=True),
        )
        self.dropout, self.fc, self.act = nn.Dropout(0.3), nn.Linear(64, 1), act

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
        last = self.lstm(packed)[1][0]
        return self.act(self.fc(self.dropout(torch.cat([last[0], last[1]], 1))))[:, 0]


def sentiment(seed: int, run: Path, interval: int, *, act: nn.Module | None = None, forgets: bool = False) -> None:
    """A classifier of reviews; a slip is a sigmoid before a loss that has its own, or a model left in eval mode."""
    torch.manual_seed(seed)
    lengths = torch.randint(5, 25, (1000,))
    words = torch.randint(1, 100, (1000, 25))
    words[torch.arange(25) >= lengths[:, None]] = 0
    good, bad = ((words >= a) & (words < b) for a, b in ((1, 20), (20, 39)))
    y = (good.sum(1) > bad.sum(1)).float()
    model, loss_fn = Sentiment(act or nn.Identity()), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    feed = batches(800, 32)
    with hook(run, model, optimizer, loss_fn, interval):
        for step in range(300):
            chosen = next(feed)
            optimizer.zero_grad()
            loss_fn(model(words[chosen], lengths[chosen]), y[chosen]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            if step % 50 == 49:
                schedule.step()
                model.eval()
                with torch.no_grad():
                    loss_fn(model(words[800:], lengths[800:]), y[800:])
                if not forgets:
                    model.train()


def graph(seed: int, run: Path, interval: int) -> None:
    """A graph convolution by hand: the whole graph in each step, a label for one node of twenty."""
    torch.manual_seed(seed)
    y = torch.randint(0, 4, (400,))
    edges = (torch.rand(400, 400) < torch.where(y[:, None] == y, 0.05, 0.005)).float().triu(1)
    edges = edges + edges.T + torch.eye(400)
    scale = edges.sum(1).rsqrt()
    edges = scale[:, None] * edges * scale
    x = torch.rand(400, 50).lt(0.05).float() + torch.nn.functional.one_hot(y, 50) * torch.rand(400, 1).lt(0.5)
    layers = nn.ModuleList([nn.Linear(50, 16), nn.Linear(16, 4)])
    dropout, known = nn.Dropout(0.5), torch.rand(400) < 0.1
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.01, weight_decay=5e-4)
    model = nn.ModuleDict({"layers": layers, "dropout": dropout})
    with hook(run, model, optimizer, None, interval) as recorder:
        for step in range(200):
            model.train()
            optimizer.zero_grad()
            output = edges @ layers[1](dropout(functional.relu(edges @ layers[0](dropout(x)))))
            functional.cross_entropy(output[known], y[known]).backward()
            optimizer.step()
            if step % 10 == 9:
                model.eval()
                with torch.no_grad():
                    output = edges @ layers[1](functional.relu(edges @ layers[0](x)))
                    recorder.log("val_loss", float(functional.cross_entropy(output[~known], y[~known])))


def embeddings(seed: int, run: Path, interval: int) -> None:
    """word2vec: skip-grams against five drawn words, sparse gradients."""
    torch.manual_seed(seed)
    topics, size = 20, 500
    into, out = (nn.Embedding(size, 24, sparse=True) for _ in range(2))
    nn.init.zeros_(out.weight)
    optimizer = torch.optim.SparseAdam([into.weight, out.weight], lr=0.01)
    with hook(run, nn.ModuleDict({"in": into, "out": out}), optimizer, None, interval):
        for _ in range(400):
            topic = torch.randint(topics, (128, 1))
            pair = topic + topics * torch.randint(size // topics, (128, 2))
            drawn = torch.randint(size, (128, 5))
            centre = into(pair[:, 0])
            near = (centre * out(pair[:, 1])).sum(1)
            far = (out(drawn) @ centre.unsqueeze(2)).squeeze(2)
            optimizer.zero_grad()
            (-functional.logsigmoid(near).mean() - functional.logsigmoid(-far).sum(1).mean()).backward()
            optimizer.step()


def cart_pole(state: Tensor, action: int) -> tuple[Tensor, bool]:
    """A step of a hundredth of a second or two of the pole on a cart, and whether it fell."""
    place, speed, angle, turn = state.tolist()
    force, sin, cos = (10.0 if action else -10.0), math.sin(angle), math.cos(angle)
    push = (force + 0.05 * turn**2 * sin) / 1.1
    spin = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pull = push - 0.05 * spin * cos / 1.1
    after = torch.tensor([place + 0.02 * speed, speed + 0.02 * pull, angle + 0.02 * turn, turn + 0.02 * spin])
    return after, abs(float(after[0])) > 2.4 or abs(float(after[2])) > 0.21


def reinforce(seed: int, run: Path, interval: int) -> None:
    """Policy gradient by whole episodes, their returns normalised."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    with hook(run, policy, optimizer, None, interval):
        for _ in range(120):
            state, log_probs, fell = torch.empty(4).uniform_(-0.05, 0.05), [], False
            while not fell and len(log_probs) < 60:
                choice = torch.distributions.Categorical(logits=policy(state))
                action = choice.sample()
                log_probs.append(choice.log_prob(action))
                state, fell = cart_pole(state, int(action))
            returns = torch.tensor([(1 - 0.99**left) / 0.01 for left in range(len(log_probs), 0, -1)])
            returns = (returns - returns.mean()) / (returns.std() + 1e-6)
            optimizer.zero_grad()
            (-torch.stack(log_probs) * returns).sum().backward()
            optimizer.step()


def q_learning(seed: int, run: Path, interval: int) -> None:
    """DQN: a memory of what happened, a network beside it that follows slowly, a Huber loss that grows with success."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    target, memory = copy.deepcopy(policy), deque(maxlen=2000)
    optimizer, loss_fn = torch.optim.AdamW(policy.parameters(), lr=1e-3, amsgrad=True), nn.SmoothL1Loss()
    state = torch.zeros(4)
    with hook(run, policy, optimizer, loss_fn, interval):
        for step in range(900):
            greedy = float(torch.rand(())) > 0.05 + 0.85 * math.exp(-step / 300)
            with torch.no_grad():
                action = int(policy(state).argmax()) if greedy else int(torch.randint(2, ()))
            after, fell = cart_pole(state, action)
            memory.append((state, action, after, 0.0 if fell else 1.0))
            state = torch.empty(4).uniform_(-0.05, 0.05) if fell else after
            if len(memory) < 64:
                continue
            rows = [memory[i] for i in torch.randint(len(memory), (64,)).tolist()]
            states, nexts = torch.stack([r[0] for r in rows]), torch.stack([r[2] for r in rows])
            chosen, alive = torch.tensor([[r[1]] for r in rows]), torch.tensor([r[3] for r in rows])
            with torch.no_grad():
                expected = 1.0 + 0.99 * alive * target(nexts).max(1).values
            loss = loss_fn(policy(states).gather(1, chosen), expected.unsqueeze(1))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(policy.parameters(), 100)
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), policy.parameters(), strict=True):
                    slow.lerp_(fast, 0.005)


def meta(seed: int, run: Path, interval: int) -> None:
    """MAML on sine waves: an inner step on ten points of each wave, through which the outer gradient goes."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with hook(run, model, optimizer, None, interval):
        for _ in range(300):
            losses = []
            for _ in range(4):
                size, phase = 0.1 + 4.9 * torch.rand(()), math.pi * torch.rand(())
                x, other = (10 * torch.rand(10, 1) - 5 for _ in range(2))
                weights = dict(model.named_parameters())
                inner = functional.mse_loss(functional_call(model, weights, (x,)), size * torch.sin(x + phase))
                slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
                moved = {n: w - 0.01 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
                adapted = functional_call(model, moved, (other,))
                losses.append(functional.mse_loss(adapted, size * torch.sin(other + phase)))
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()


class Continued(nn.Module):
    """Two LSTM cells in double precision that predict a wave point by point."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1, self.lstm2, self.linear = nn.LSTMCell(1, 24), nn.LSTMCell(24, 24), nn.Linear(24, 1)

    def forward(self, series: Tensor) -> Tensor:
        one = other = None
        outputs = []
        for value in series.split(1, dim=1):
            one = self.lstm1(value, one)
            other = self.lstm2(one[0], other)
            outputs.append(self.linear(other[0]))
        return torch.cat(outputs, 1)


def waves(seed: int, run: Path, interval: int) -> None:
    """The time sequence example: L-BFGS over all data, in steps of 20 evaluations."""
    torch.manual_seed(seed)
    series = torch.sin((torch.arange(40) + torch.randint(-80, 80, (30, 1))) / 5.0).double()
    model, criterion = Continued().double(), nn.MSELoss()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.8)
    with hook(run, model, optimizer, criterion, interval):
        for _ in range(15):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = criterion(model(series[3:, :-1]), series[3:, 1:])
                loss.backward()
                return loss

            optimizer.step(closure)
            with torch.no_grad():
                criterion(model(series[:3, :-1]), series[:3, 1:])


def equation(seed: int, run: Path, interval: int) -> None:
    """A network informed by physics: a damped oscillator whose residual and first values are the loss."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    start = torch.zeros(1, 1, requires_grad=True)
    with hook(run, model, optimizer, None, interval):
        for _ in range(500):
            time = torch.rand(64, 1, requires_grad=True)
            y, first = model(time), model(start)
            slope = torch.autograd.grad(y.sum(), time, create_graph=True)[0]
            curve = torch.autograd.grad(slope.sum(), time, create_graph=True)[0]
            speed = torch.autograd.grad(first, start, create_graph=True)[0]
            loss = ((first - 1) ** 2 + 0.1 * speed**2).squeeze() + 1e-3 * (curve + 2 * slope + 36 * y).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def cars(
    seed: int, run: Path, interval: int, *, scaled: bool = True, flat: bool = False, last: nn.Module | None = None
) -> None:
    """Consumption from weight, power and year; slips: no scaling, targets of another shape, a ReLU at the end."""
    torch.manual_seed(seed)
    x = torch.randn(400, 4)
    y = (-5 * x[:, 0] - 2 * x[:, 1] + 3 * x[:, 2] + x[:, 0] ** 2 + torch.randn(400)) / 7
    if not scaled:
        x = x * torch.tensor([850.0, 40.0, 4.0, 3.0]) + torch.tensor([3000.0, 100.0, 1976.0, 15.0])
    if not flat:
        y = y.unsqueeze(1)
    model, loss_fn = (
        nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)),
        nn.MSELoss(),
    )
    if last:
        model.append(last)
    optimizer = (
        torch.optim.RMSprop(model.parameters(), lr=1e-3) if scaled else torch.optim.SGD(model.parameters(), lr=1e-3)
    )
    feed = batches(320, 32)
    with hook(run, model, optimizer, loss_fn, interval):
        for step in range(500):
            chosen = next(feed)
            optimizer.zero_grad()
            loss_fn(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if step % 10 == 9:
                model.eval()
                with torch.no_grad():
                    loss_fn(model(x[320:]), y[320:])
                model.train()
