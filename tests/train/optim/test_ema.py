"""The moving average equals torch's with a warm-up, and a round's metrics are those of the averaged network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from trainer_harness import ALONE, digest, small_job

from mtl_cloud.train.checkpoint.checkpointer import read_checkpoint
from mtl_cloud.train.evaluate import validate
from mtl_cloud.train.optim.ema import MovingAverage
from mtl_cloud.train.trainer import Trainer

TrainerMaker = Callable[..., Trainer]


def trained_steps(network: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_weights_and_statistics_are_those_of_torchs_averaged_model() -> None:
    """The reference copies the weights at its first update, then averages them with the warm-up's decay."""
    network = small_network()

    def average(mean: Tensor, newest: Tensor, count: Tensor | int) -> Tensor:
        decay = min(0.5, (1 + int(count)) / (10 + int(count)))
        return torch.lerp(mean, newest, 1 - decay) if mean.is_floating_point() else newest

    reference = AveragedModel(network, avg_fn=average, use_buffers=True)
    reference.update_parameters(network)
    ours = MovingAverage(network, 0.5)
    ours.update()  # averages equal weights
    for _ in range(30):
        trained_steps(network, 1)
        ours.update()
        reference.update_parameters(network)
    for (name, value), expected in zip(ours.network.named_parameters(), reference.module.parameters(), strict=True):
        assert torch.equal(value, expected), name
    for (name, own), other in zip(ours.network.named_buffers(), reference.module.buffers(), strict=True):
        assert torch.equal(own, other), name


def test_loaded_state_continues_bit_for_bit() -> None:
    network = small_network()
    one, other = MovingAverage(network, 0.9), MovingAverage(small_network(), 0.9)
    trained_steps(network, 3)
    one.update()
    other.load_state_dict(one.state_dict())
    other = MovingAverage(network, 0.9)
    other.load_state_dict(one.state_dict())
    trained_steps(network, 1)
    one.update()
    other.update()
    assert digest(one.network) == digest(other.network)


def test_a_round_validates_the_averaged_network_and_commits_both(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(small_job(rounds=1, epochs_per_round=1, ema=0.99))
    assert trainer.fit()
    (record,) = trainer.run.rounds()
    average = trainer.replica.eval_network
    assert digest(average) != digest(trainer.network)
    outcomes = [
        validate(
            network,
            trainer.heads,
            trainer.validation_batches(),
            group=ALONE,
            autocast=trainer.replica.autocast,
            interrupted=lambda: False,
        )
        for network in (average, trainer.network)
    ]
    losses = [outcome.losses if outcome else None for outcome in outcomes]
    assert losses[0] == record.val_losses != losses[1]
    state = read_checkpoint(trainer.run, trainer.run.checkpoints()[-1]).state
    assert all(torch.equal(state["ema"]["network"][name], value) for name, value in average.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_is_between_nothing_and_all(decay: float) -> None:
    with pytest.raises(ValueError, match="ema"):
        small_job(ema=decay)
