"""The one training loop: what it minimises, when it stops, what it keeps, on what it runs."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusion
from fusion import checkpoints
from fusion.fitting import Fit, Fitted, fit, settle_device, settle_precision

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 5, generator=GENERATOR)
Y = (X @ torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0]) > 0).float()
HOW = Fit(epochs=12, patience=3, batch_size=10, learning_rate=0.05, seed=1)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 1))


def loss_of(module: nn.Module):
    return lambda index: F.binary_cross_entropy_with_logits(module(X[index]).squeeze(1), Y[index])


def silent(*_: object) -> None:
    pass


def nothing() -> None:
    return None


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_tells_every_epoch() -> None:
    module, told = network(), []
    done = fit(module, loss_of(module), nothing, rows=60, how=HOW, tell=lambda *at: told.append(at))
    assert done == Fitted(12, None, None)
    assert [at[0] for at in told] == list(range(12))
    assert all(at[1] == 12 and at[3] is None for at in told)
    assert told[-1][2] < 0.5 * told[0][2]


def test_it_stops_early_and_keeps_the_best_state_not_the_last() -> None:
    module, losses = network(), iter([0.9, 0.5, 0.6, 0.7, 0.8, 0.1])
    held: list[dict[str, Tensor]] = []

    def tuning_loss() -> float:
        held.append(state(module))
        return next(losses)

    done = fit(module, loss_of(module), tuning_loss, rows=60, how=HOW, tell=silent)
    assert done == Fitted(5, 2, 0.5), "three epochs without a better one are the patience"
    assert same(state(module), held[1])


def test_what_tell_raises_stops_it() -> None:
    def tell(epoch: int, *_: object) -> None:
        if epoch == 2:
            raise fusion.Cancelled("enough")

    module = network()
    with pytest.raises(fusion.Cancelled, match="enough"):
        fit(module, loss_of(module), nothing, rows=60, how=HOW, tell=tell)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_minibatches_are_one_large_one(accumulate: int) -> None:
    """Same order of rows: 60 rows in steps of 10 x accumulate."""
    small = Fit(3, 9, 10, 0.05, 1, accumulate=accumulate)
    large = Fit(3, 9, 10 * accumulate, 0.05, 1)
    found = []
    for how in (small, large):
        module = network()
        fit(module, loss_of(module), nothing, rows=60, how=how, tell=silent)
        found.append(state(module))
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-6) for k in found[0])


def test_rows_that_count_for_nothing_are_weighed_so_when_minibatches_are_added() -> None:
    """A mean over labelled rows only: half of the first minibatch has no label."""
    known = torch.ones(20, dtype=torch.bool)
    known[:5] = False

    def weighed(module: nn.Module):
        def loss(index: Tensor) -> tuple[Tensor, Tensor]:
            labelled = known[index].float()
            each = F.binary_cross_entropy_with_logits(module(X[index]).squeeze(1), Y[index], reduction="none")
            return (each * labelled).sum() / labelled.sum().clamp(min=1), labelled.sum()

        return loss

    found = []
    for how in (Fit(1, 9, 10, 0.05, 1, accumulate=2), Fit(1, 9, 20, 0.05, 1)):
        module = network()
        fit(module, weighed(module), nothing, rows=20, how=how, tell=silent)
        found.append(state(module))
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-6) for k in found[0])


def test_a_step_is_no_longer_than_clip_allows() -> None:
    """Plain gradient descent would be needed to see it in the weights; Adam's first moment shows it."""
    seen: list[float] = []
    module = network()

    def loss(index: Tensor) -> Tensor:
        if module[0].weight.grad is not None:
            seen.append(0.0)
        return 1e4 * loss_of(module)(index)

    original = nn.utils.clip_grad_norm_
    norms: list[float] = []

    def watched(parameters, limit):
        parameters = list(parameters)
        found = original(parameters, limit)
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", watched)
        fit(module, loss, nothing, rows=60, how=Fit(1, 9, 30, 0.01, 1, clip=0.25), tell=silent)
    assert norms
    assert max(norms) <= 0.25 + 1e-5


def test_rates_and_freezing_decide_what_moves() -> None:
    module = network()
    first, last = list(module[0].parameters()), list(module[3].parameters())
    before = state(module)

    def at_epoch(epoch: int) -> None:
        for parameter in first:
            parameter.requires_grad_(epoch >= 2)

    moved: list[bool] = []
    fit(
        module,
        loss_of(module),
        nothing,
        rows=60,
        how=Fit(3, 9, 30, 0.01, 1),
        tell=lambda *_: moved.append(not torch.equal(module[0].weight, before["0.weight"])),
        rates=[(first, 1e-4), (last, 1e-2)],
        at_epoch=at_epoch,
    )
    assert moved == [False, False, True]
    after = state(module)
    assert (after["0.weight"] - before["0.weight"]).abs().max() < 3e-4, "two steps of 1e-4"
    assert (after["3.weight"] - before["3.weight"]).abs().max() > 3e-2


def test_bfloat16_on_a_cpu_reaches_the_same_loss_and_weights_stay_float32() -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        module, told, seen = network(), [], set()

        def loss(index: Tensor, module: nn.Module = module, seen: set = seen) -> Tensor:
            logits = module(X[index]).squeeze(1)
            seen.add(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits.float(), Y[index])

        how = Fit(12, 9, 10, 0.05, 1, precision=precision)
        fit(module, loss, nothing, rows=60, how=how, tell=lambda *at, told=told: told.append(at[2]))
        assert seen == {getattr(torch, precision)}
        assert all(p.dtype == torch.float32 for p in module.parameters())
        found[precision] = told[-1]
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.05)


def test_devices_and_precisions_that_are_not_here_say_what_to_do() -> None:
    assert settle_device("cpu").type == "cpu"
    assert settle_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert settle_precision("auto", torch.device("cpu")) == torch.float32
    with pytest.raises(fusion.BadInput, match="'auto', 'cpu' or 'cuda', not 'tpu9'"):
        settle_device("tpu9")
    with pytest.raises(fusion.BadInput, match="needs a GPU; on a CPU use"):
        settle_precision("float16", torch.device("cpu"))
    with pytest.raises(fusion.BadInput, match="one of float32, bfloat16, float16, not 'int4'"):
        settle_precision("int4", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(fusion.BadInput, match="torch sees no GPU; use 'auto' or 'cpu'"):
            settle_device("cuda")


# -- checkpoints -----------------------------------------------------------------------------------------
def run(module: nn.Module, path: Path | None, *, stop: int | None = None, how: Fit = HOW, data: str = "a"):
    """A fit with dropout and a generator of its own; stopped after epoch `stop`."""
    generator = torch.Generator().manual_seed(3)

    def loss(index: Tensor) -> Tensor:
        noise = 0.1 * torch.randn(len(index), 5, generator=generator)
        return F.binary_cross_entropy_with_logits(module(X[index] + noise).squeeze(1), Y[index])

    def tuning_loss() -> float:
        return float(F.binary_cross_entropy_with_logits(module(X).squeeze(1), Y))

    told: list[int] = []

    def tell(epoch: int, *_: object) -> None:
        told.append(epoch)
        if epoch == stop:
            raise KeyboardInterrupt

    torch.manual_seed(11)
    done = fit(
        module, loss, tuning_loss, rows=60, how=how, tell=tell,
        generators=[generator], checkpoint=path, belongs_to=data,
    )  # fmt: skip
    return done, told


@pytest.mark.parametrize("stop", [0, 4, 9])
def test_a_stopped_fit_goes_on_to_the_very_same_weights(stop: int, tmp_path: Path) -> None:
    whole = network(0.3)
    done, _ = run(whole, None)
    after = torch.rand(3)
    halved = network(0.3)
    with pytest.raises(KeyboardInterrupt):
        run(halved, tmp_path / "fit.safetensors", stop=stop)
    resumed = network(0.3)
    again, told = run(resumed, tmp_path / "fit.safetensors")
    assert told[0] == stop, "the epoch that was not saved is run again, those before it are not"
    assert again == done
    assert same(state(resumed), state(whole))
    assert torch.equal(torch.rand(3), after), "what is drawn next is the same, too"


def test_a_finished_fit_is_not_run_again(tmp_path: Path) -> None:
    first = network(0.3)
    done, _ = run(first, tmp_path / "fit.safetensors")
    second = network(0.3)
    again, told = run(second, tmp_path / "fit.safetensors")
    assert told == []
    assert again == done
    assert same(state(second), state(first))


@pytest.mark.parametrize("other", ["data", "how", "weights", "bytes"])
def test_a_checkpoint_of_another_training_is_not_used(other: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    run(network(0.3), path)
    module, how, data = network(0.3), HOW, "a"
    if other == "data":
        data = "b"
    elif other == "how":
        how = Fit(12, 3, 10, 0.05, 2)
    elif other == "weights":
        with torch.no_grad():
            module[0].weight += 0.1
    else:
        path.write_bytes(path.read_bytes()[:-40])
    _, told = run(module, path, how=how, data=data)
    assert told[0] == 0


def test_a_checkpoint_is_tensors_and_json_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    module = network()
    key = checkpoints.fingerprint(module, "x")
    checkpoints.write(path, key, module.state_dict(), {"epoch": 3, "best": None})
    held = checkpoints.read(path, key)
    assert held is not None
    assert held.numbers["epoch"] == 3
    assert same(held.tensors, state(module))
    assert checkpoints.read(path, "another") is None
    assert checkpoints.read(tmp_path / "none", key) is None
    assert [p.name for p in tmp_path.iterdir()] == ["fit.safetensors"], "nothing half-written is left"
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed[3].bias += 1e-7
    keys = [key, checkpoints.fingerprint(changed, "x"), checkpoints.fingerprint(module, "y")]
    assert all(a != b for a, b in pairwise(keys))


def test_other_data_have_another_digest() -> None:
    one = checkpoints.digest(X, Y)
    assert one == checkpoints.digest(X.clone(), Y.clone())
    assert len({one, checkpoints.digest(X + 1e-6, Y), checkpoints.digest(X.T, Y), checkpoints.digest(X)}) == 4
    assert checkpoints.digest(torch.zeros(0, 4)) != checkpoints.digest(torch.zeros(0, 3))
