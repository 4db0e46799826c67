"""Training runs as public tutorials and examples have them, and classic slips made in these very scripts.

Written before any rule was run on them. Slips are those of published benchmarks of training faults (DeepLocalize,
DeepFD, TrainCheck, AUTOTRAINER) and of questions that are asked again and again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import recipes_images as images
import recipes_sequences as sequences
from corpus import Job
from torch import nn

_LEFT = ("ExplodingTensor", "DivergingLoss")
_STILL = ("StalledLoss", "NoGradient", "UnchangedTensor")

RECIPES: tuple[Job, ...] = (
    Job("first network", images.first_net),
    Job("residual network, cosine", images.residual),
    Job("transfer learning", images.transfer),
    Job("mixup, one cycle, averaged weights", images.mixed_up),
    Job("variational autoencoder", images.variational),
    Job("DCGAN", images.adversarial),
    Job("siamese", images.siamese),
    Job("knowledge distillation", images.distilled),
    Job("quantisation aware", images.quantised),
    Job("two tasks, accumulated", images.two_tasks),
    Job("characters, GPT", sequences.gpt),
    Job("letters, recurrent, by hand", sequences.names),
    Job("sentiment, LSTM", sequences.sentiment),
    Job("graph convolution", sequences.graph),
    Job("word2vec", sequences.embeddings),
    Job("REINFORCE", sequences.reinforce),
    Job("DQN", sequences.q_learning),
    Job("MAML", sequences.meta),
    Job("time sequence, L-BFGS", sequences.waves),
    Job("physics-informed", sequences.equation),
    Job("cars, regression", sequences.cars),
    # slips
    Job("first network, no zero_grad", partial(images.first_net, resets=False), ("GradientsNotReset",)),
    Job(
        "first network, loss.item() made a tensor again",
        partial(images.first_net, cut=True),
        ("NoGradient", "UnchangedTensor", "StalledLoss"),
    ),
    Job("first network, copied after the optimizer was made", partial(images.first_net, stale=True), _STILL),
    Job(
        "first network, softmax before the loss",
        partial(images.first_net, last=nn.Softmax(1)),
        ("WrongLossInput",),
    ),
    Job(
        "first network, ReLU on the logits",
        partial(images.first_net, last=nn.ReLU()),
        ("WrongLossInput", "DeadRelu", "StalledLoss"),
    ),
    Job(
        "first network, rate of 1",
        partial(images.first_net, rate=1.0),
        (*_LEFT, "StalledLoss", "OscillatingLoss", "UpdateTooLarge", "DeadRelu"),
    ),
    Job(
        "residual network, schedule by batch",
        partial(images.residual, rate=0.01, every_batch=True),
        ("LearningRateDecayedEarly",),
        40,
    ),
    Job("transfer learning, head after the optimizer", partial(images.transfer, late_head=True), ("UnchangedTensor",)),
    Job("transfer learning, frozen head given", partial(images.transfer, frozen_given=True), _STILL),
    Job(
        "variational autoencoder, half averaged",
        partial(images.variational, averaged=True),
        ("CollapsedOutput", "StalledLoss"),
    ),
    Job(
        "characters, GPT, rate of 1, no clipping",
        partial(sequences.gpt, rate=1.0, stops=False),
        (*_LEFT, "UpdateTooLarge", "LossSpike", "OscillatingLoss"),
    ),
    Job("letters, recurrent, rate of a tenth", partial(sequences.names, rate=0.1), _LEFT),
    Job(
        "sentiment, sigmoid twice",
        partial(sequences.sentiment, act=nn.Sigmoid()),
        ("WrongLossInput",),
    ),
    Job("sentiment, left in eval mode", partial(sequences.sentiment, forgets=True), ("ModelInEvalMode",), 50),
    Job("cars, as they come", partial(sequences.cars, scaled=False), ("InputNotNormalized", *_LEFT)),
    Job(
        "cars, targets of another shape",
        partial(sequences.cars, flat=True),
        ("WrongLossInput", "CollapsedOutput", "StalledLoss"),
    ),
    Job(
        "cars, ReLU at the end",
        partial(sequences.cars, last=nn.ReLU()),
        ("DeadRelu", "CollapsedOutput", "StalledLoss", "WrongLossInput"),
    ),
)
JOBS = tuple(replace(job, name=f"recipe: {job.name}") for job in RECIPES)
