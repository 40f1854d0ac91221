"""Pictures of rare classes made by a GAN: conditional DCGAN with hinge loss (Radford 2016; Miyato 2018).

What it makes is synthetic: every picture carries that word, and no split but training takes it
(`fusion.examples.check_real`). With some hundred real pictures it learns colours and blobs rather than
morphology; whether it helps is to be measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fusion import checkpoints
from fusion.errors import BadInput, NotEnoughData
from fusion.examples import SYNTHETIC
from fusion.inputs import FloatArray
from fusion.numerics import without_denormals

SIDE, LATENT = 64, 64
LEAST_PICTURES = 20
EVERY = 100  # steps between two words of how far it is
Sides = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]


@dataclass(frozen=True, eq=False, slots=True)
class Synthetic:
    """Made pictures float32 [N, C, 64, 64] in [0, 1], their classes int [N], and a key for each."""

    values: FloatArray
    classes: NDArray[np.int64]

    @property
    def keys(self) -> list[str]:
        """Keys that `check_real` knows."""
        return [f"{SYNTHETIC}-{place}" for place in range(len(self.classes))]


class Generator(nn.Module):
    """Noise [B, 64] and class [B] → pictures [B, C, 64, 64] in [0, 1]."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.kind = nn.Embedding(classes, LATENT)
        self.start = nn.Linear(2 * LATENT, 8 * width * 16)
        layers: list[nn.Module] = []
        for before, after in ((8, 4), (4, 2), (2, 1)):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before * width, after * width, 3, padding=1)]
            layers += [nn.BatchNorm2d(after * width), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor, kinds: Tensor) -> Tensor:
        start = self.start(torch.cat([noise, self.kind(kinds)], dim=1))
        made: Tensor = self.layers(start.view(len(noise), -1, 4, 4))
        return made


class Critic(nn.Module):
    """Pictures and class → a score, high for real ones (projection of the class, Miyato & Koyama 2018)."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers)
        self.said = nn.Linear(4 * width, 1)
        self.kind = nn.Embedding(classes, 4 * width)

    def forward(self, pictures: Tensor, kinds: Tensor) -> Tensor:
        seen = self.layers(pictures).mean(dim=(2, 3))
        told: Tensor = self.said(seen)[:, 0] + (seen * self.kind(kinds)).sum(1)
        return told


def train_gan(
    pictures: FloatArray,
    classes: NDArray[np.int64],
    *,
    steps: int = 1500,
    batch: int = 32,
    seed: int = 0,
    tell: Callable[[int, float, float], None] | None = None,
    checkpoint: Path | None = None,
) -> Generator:
    """Real training pictures float32 [N, C, 64, 64] in [0, 1] and classes 0 … K-1 → Generator.

    Every class is drawn alike, whatever its size. Two networks learn in turns, so not by `fusion.fitting`.
    Raises NotEnoughData and BadInput.

    tell        called every 100 steps with (step, the critic's loss, the generator's)
    checkpoint  file that says then how far it is: a training that was killed goes on to the same generator
    """
    if pictures.ndim != 4 or pictures.shape[2:] != (SIDE, SIDE) or len(pictures) != len(classes):
        raise BadInput(
            f"pictures must be [N, C, {SIDE}, {SIDE}] with a class each, not {list(pictures.shape)}"
        )
    counts = np.bincount(classes)
    if len(counts) == 0 or int(counts.min()) < LEAST_PICTURES:
        raise NotEnoughData(
            f"a GAN needs {LEAST_PICTURES} pictures of each class; here are {counts.tolist()}"
        )
    with torch.random.fork_rng(devices=[]), without_denormals():
        torch.manual_seed(seed)
        maker = Generator(pictures.shape[1], len(counts))
        critic = Critic(pictures.shape[1], len(counts))
        makes = torch.optim.Adam(maker.parameters(), lr=2e-4, betas=(0.0, 0.9))
        judges = torch.optim.Adam(critic.parameters(), lr=4e-4, betas=(0.0, 0.9))
        held, known = torch.from_numpy(pictures), torch.from_numpy(classes)
        of_class = [torch.nonzero(known == k).squeeze(1) for k in range(len(counts))]
        sides = {"maker": (maker, makes), "critic": (critic, judges)}
        key = "" if checkpoint is None else _key(sides, batch, seed, checkpoints.digest(held, known))
        for step in range(0 if checkpoint is None else _resumed(checkpoint, key, sides), steps):
            if checkpoint is not None and step % EVERY == 0:
                _save(checkpoint, key, sides, step)
            kinds = torch.randint(len(counts), (batch,))
            rows = torch.stack([of_class[int(k)][torch.randint(len(of_class[int(k)]), ())] for k in kinds])
            made = maker(torch.randn(batch, LATENT), kinds)
            real, fake = critic(_shaken(held[rows]), kinds), critic(_shaken(made.detach()), kinds)
            judged = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            judges.zero_grad()
            judged.backward()
            judges.step()
            fooled = -critic(_shaken(made), kinds).mean()
            makes.zero_grad()
            fooled.backward()
            makes.step()
            if tell is not None and step % EVERY == 0:
                tell(step, float(judged.detach()), float(fooled.detach()))
    return maker.eval()


def _key(sides: Sides, *said: object) -> str:
    return " ".join(checkpoints.fingerprint(module, *said) for module, _ in sides.values())


def _save(path: Path, key: str, sides: Sides, step: int) -> None:
    tensors = {"random": checkpoints.random_states(())}
    for name, (module, optimiser) in sides.items():
        tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
        tensors |= {f"{name}'s.{k}": v for k, v in checkpoints.optimiser_tensors(optimiser).items()}
    checkpoints.write(path, key, tensors, {"step": step})


def _resumed(path: Path, key: str, sides: Sides) -> int:
    """The step to go on with."""
    held = checkpoints.read(path, key)
    if held is None:
        return 0
    for name, (module, optimiser) in sides.items():
        module.load_state_dict(held.part(f"{name}."))
        checkpoints.fill_optimiser(optimiser, held.part(f"{name}'s."))
    checkpoints.set_random_states(held.tensors["random"], ())
    return int(held.numbers["step"])


def synthesise(maker: Generator, counts: dict[int, int], *, seed: int = 0) -> Synthetic:
    """So many pictures of each class. Raises BadInput for a class it was not trained on."""
    if wrong := [kind for kind in counts if not 0 <= kind < maker.kind.num_embeddings]:
        raise BadInput(f"the GAN knows classes 0 to {maker.kind.num_embeddings - 1}, not {wrong}")
    kinds = np.repeat(list(counts), list(counts.values())).astype(np.int64)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(), without_denormals():
        noise = torch.randn(len(kinds), LATENT, generator=generator)
        parts = [maker(n, k) for n, k in zip(noise.split(64), torch.from_numpy(kinds).split(64), strict=True)]
    return Synthetic(torch.cat(parts).numpy(), kinds)


def _shaken(pictures: Tensor) -> Tensor:
    """Differentiable augmentation (Zhao 2020), real and made alike: brightness, flips, shifts."""
    count = len(pictures)
    shaken = pictures + (torch.rand(count, 1, 1, 1) - 0.5) * 0.3
    shaken = torch.where(torch.rand(count, 1, 1, 1) < 0.5, shaken.flip(3), shaken)
    rows, columns = (int(x) for x in torch.randint(-6, 7, (2,)))
    return torch.roll(shaken, (rows, columns), dims=(2, 3))
