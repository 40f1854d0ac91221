"""The mathematics: encoders, risk with explanation, a picture to its risk, retraining; each beside its limit.

    python -m benchmarks.fusion            # all parts, each in a process of its own
    python -m benchmarks.fusion encoders   # one part

Goals are printed in the table, met or not. All patients and pictures here are simulated.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measuring, simulated_patients

ENCODERS = ("efficientnet_lite0", "resnet18", "resnet50", "densenet121")
OTHERS = ("convnext_tiny", "inception_v3", "vgg16")
SIDE = 224


def p50(call: Callable[[], object], times: int = 15) -> float:
    """Median milliseconds of a warm call."""
    call()
    return float(np.median(measuring.timed(call, times)) * 1000)


def in_turn(calls: Sequence[Callable[[], object]], times: int = 31) -> list[float]:
    """Median milliseconds of each; one after the other, so that a slow moment of the machine hits all."""
    took = [[measuring.timed(call, 1)[0] for call in calls] for _ in range(times + 1)]
    return [float(found) for found in np.median(took[1:], axis=0) * 1000]


def encoders(names: Sequence[str] = ENCODERS, title: str = "Image encoders, one frame") -> measuring.Table:
    """One picture of 1024 x 1024 to its embedding: eager, ONNX Runtime, int8, and the raw forward of each."""
    from fusion import load_backbone
    from fusion.export import quantise
    from fusion.serving import serve

    columns = (
        "encoder", "raw torch ms", "eager ms", "raw ONNX Runtime ms", "served ms", "served / raw (goal 1.15)",
        "int8 ms", "int8 cosine (gate 0.995)", "largest difference",
    )  # fmt: skip
    table = measuring.Table(title, columns)
    pictures = simulated_patients.radiographs(32)
    with tempfile.TemporaryDirectory() as held:
        for name in names:
            original = load_backbone(name)
            served = serve(original, Path(held))
            values = pictures[:1]
            frames = original.prepare(values, SIDE)
            worst = float(np.abs(served.embed(values, SIDE) - original.embed(values, SIDE)).max())
            session = served.session(frames)
            with torch.inference_mode():
                raw_torch, eager = in_turn(
                    (lambda: original.maps(frames), lambda: original.embed(values, SIDE))  # noqa: B023
                )
            raw, whole = in_turn(
                (
                    lambda: session.run(None, {"frames": frames.numpy()}),  # noqa: B023
                    lambda: served.embed(values, SIDE),  # noqa: B023
                )
            )
            prepared = np.concatenate([original.prepare(one[None], SIDE).numpy() for one in pictures])
            small = Path(held) / f"{name}.int8.onnx"
            check = quantise(next(Path(held).glob(f"{name}-*.onnx")), small, prepared)
            int8 = "refused"
            if check.passed:
                from fusion.runtime import open_session

                quick = open_session(small)
                int8 = f"{p50(lambda: quick.run(None, {'frames': frames.numpy()})):.1f}"  # noqa: B023
            table.add(
                name, raw_torch, eager, raw, whole, whole / raw, int8, f"{check.cosine:.4f}", f"{worst:.1e}"
            )
    table.notes.append(
        "One thread. Served: 1024 x 1024 resized to 224, normalised, ONNX Runtime; raw: the last alone, of a "
        "frame already prepared; medians of 31 calls of each, in turn. efficientnet_lite0 has the weights of "
        "ImageNet, all others' are random: no time changes, but their int8 cosines prove little."
    )
    return table


def other_encoders() -> measuring.Table:
    """The same of further networks; all in one run take long."""
    return encoders(OTHERS, "Other image encoders, one frame")


def answers() -> measuring.Table:
    """Warm risk, interval and exact Shapley; pictures of three transfer syntaxes to a risk; a clip."""
    import fusion
    from benchmarks import dicom_pictures, eight_modalities
    from fusion.encoders.record import RecordEncoder
    from fusion.serving import serve

    table = measuring.Table("From evidence to risk", ("what", "p50 ms", "p95 ms", "goal ms", "met"))

    def add(what: str, call: Callable[[], object], goal: float, times: int = 30) -> None:
        call()
        put(what, measuring.timed(call, times), goal)

    def put(what: str, took: list[float], goal: float) -> None:
        seconds = np.array(took) * 1000
        middle = float(np.percentile(seconds, 50))
        table.add(
            what, middle, float(np.percentile(seconds, 95)), goal, "yes" if middle <= goal else "**no**"
        )

    bundle, patients = simulated_patients.four_modalities(600)
    one = patients[-1]
    add("risk, interval, exact Shapley over 4 modalities", lambda: fusion.predict(bundle, [one]), 10)
    larger, others = simulated_patients.four_modalities(1700)
    trees = [
        m.value
        for m in larger.config.modalities
        if isinstance(found := larger.model.encoder(m), RecordEncoder) and bool(found.trees.is_fitted.all())
    ]
    add(
        f"the same of a larger model (850 patients; boosted trees in: {', '.join(trees) or 'nothing'})",
        lambda: fusion.predict(larger, [others[-1]]),
        10,
    )
    table.notes.append(
        "Of 4 modalities: the whole of `fusion.predict`, with Owen values of 20 fields, 10 channels and 3 "
        "sentences for both outcomes, and the paragraph. Of 8 the same, with 5 genomic scores, a clip and a "
        "volume of 32, and the electrocardiogram that docs/fusion.md adds; trained on 200 simulated patients."
    )
    for kind, took in eight_modalities.timed([one.value for one in fusion.FusionKind]).items():
        put(f"risk, interval, exact Shapley over 8 modalities, {kind} fusion", took, 25)
    import ehr

    with tempfile.TemporaryDirectory() as held:
        backbone = serve(fusion.load_backbone("efficientnet_lite0"), Path(held))
        for syntax, goal in (("raw", 60), ("JPEG-LS", 120), ("JPEG 2000", 250)):
            file = dicom_pictures.radiograph(Path(held) / f"{syntax}.dcm", syntax)

            def again(file: Path = file) -> object:
                frames = ehr.read_clip([file]).frames
                changed = simulated_patients.with_image(bundle, one, backbone.embed(frames, SIDE))
                return fusion.predict(bundle, [changed])

            add(f"radiograph 2000 x 2000, 12 bits, {syntax}: file to risk", again, goal, 12)
        clip = np.random.default_rng(0).random((32, 256, 256), dtype=np.float32)
        add(
            "clip of 32 frames of 256 x 256: frames to embeddings at 112",
            lambda: backbone.embed(clip, 112),
            100,
            8,
        )
    return table


def training() -> measuring.Table:
    """Pictures a second through the training loop, every layer trained, beside a bare PyTorch loop."""
    import copy

    from fusion import load_backbone
    from fusion.fitting import Fit, fit
    from fusion.numerics import without_denormals

    columns = ("encoder", "bare loop, pictures/s", "ours, pictures/s", "ours / bare (goal 0.9)", "peak MiB")
    table = measuring.Table("Training, every layer", columns)
    rows, batch = 96, 16
    for name, side, epochs in (("small_cnn", 64, 40), ("resnet18", 128, 1), ("efficientnet_lite0", 128, 1)):
        pictures = torch.rand(rows, 3, side, side)
        labels = (torch.rand(rows, 1) > 0.5).float()
        backbone = load_backbone(name).network

        def net(backbone: torch.nn.Module = backbone) -> torch.nn.Module:
            body = copy.deepcopy(backbone).requires_grad_(True)
            return torch.nn.Sequential(
                body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.LazyLinear(1)
            )

        def bare(
            model: torch.nn.Module, x: torch.Tensor = pictures, y: torch.Tensor = labels, epochs: int = epochs
        ) -> None:
            steps = torch.optim.AdamW(model.parameters(), 1e-3)
            model.train()
            for _ in range(epochs):
                for index in torch.randperm(rows).split(batch):
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x[index]), y[index])
                    steps.zero_grad()
                    loss.backward()
                    steps.step()

        def ours(
            model: torch.nn.Module, x: torch.Tensor = pictures, y: torch.Tensor = labels, epochs: int = epochs
        ) -> None:
            def loss(index: torch.Tensor) -> torch.Tensor:
                return torch.nn.functional.binary_cross_entropy_with_logits(model(x[index]), y[index])

            how = Fit(epochs=epochs, patience=epochs, batch_size=batch, learning_rate=1e-3, seed=0)
            fit(model, loss, lambda: None, rows=rows, how=how, tell=lambda *told: None)

        took: dict[str, list[float]] = {"bare": [], "ours": []}
        with without_denormals():
            for _ in range(4):  # in turn, so that a slow moment of the machine hits both; the first warms up
                for called, run in (("bare", bare), ("ours", ours)):
                    model = net()
                    model(pictures[:2])
                    began = time.perf_counter()
                    run(model)
                    took[called].append(time.perf_counter() - began)
        speed = {called: rows * epochs / float(np.median(times[1:])) for called, times in took.items()}
        table.add(
            f"{name} at {side}", speed["bare"], speed["ours"], speed["ours"] / speed["bare"], peak_mib()
        )
    table.notes.append(
        f"One thread, float32, batches of {batch}; the median of three runs of each, in turn: {rows} "
        "pictures, 40 epochs of small_cnn (fewer end in less time than can be compared), one of the others."
    )
    return table


def retraining() -> measuring.Table:
    """A whole retraining of the fusion for 20,000 patients from stored embeddings, with report."""
    import fusion

    table = measuring.Table("Retraining from stored embeddings", ("what", "seconds", "goal", "met"))
    examples, config = simulated_patients.many(20_000)
    began = time.perf_counter()
    bundle = fusion.train(examples[:14_000], examples[14_000:17_000], config)
    trained = time.perf_counter()
    report = fusion.evaluate(bundle, examples[17_000:])
    done = time.perf_counter()
    table.add("training and calibration, 17,000 patients, 4 modalities, 2 outcomes", trained - began, "", "")
    table.add("report on 3,000 held-out patients", done - trained, "", "")
    table.add("together", done - began, "180", "yes" if done - began <= 180 else "**no**")
    auroc = next(iter(report.outcomes.values()))["auroc"]["value"]
    table.notes.append(
        f"AUROC {auroc:.3f}; peak memory {peak_mib():,} MiB with all embeddings in memory; one thread."
    )
    return table


def growth() -> measuring.Table:
    """How time and memory grow with patients in a batch, frames, and modalities."""
    import fusion
    from fusion.attribution import shapley
    from fusion.fuse import build_fusion

    table = measuring.Table("Growth", ("what", "of", "ms", "ms each"))
    bundle, patients = simulated_patients.four_modalities(600)
    for count in (1, 8, 64, 512):
        took = p50(lambda: fusion.predict(bundle, patients[:count], explain=False), 5)  # noqa: B023
        table.add("risk without explanation", f"{count} patients", took, took / count)
    backbone = fusion.load_backbone("efficientnet_lite0")
    for count in (1, 8, 32, 128):
        frames = np.random.default_rng(0).random((count, 112, 112), dtype=np.float32)
        took = p50(lambda: backbone.embed(frames, 112), 3)  # noqa: B023
        table.add("eager embedding at 112", f"{count} frames", took, took / count)
    for count in (2, 4, 6, 8, 10):
        head = build_fusion(fusion.FusionKind.LATE, count, 2).eval()
        evidence, present = torch.randn(count, 2), torch.ones(count, dtype=torch.bool)
        with torch.no_grad():
            took = p50(lambda: shapley(evidence, present, head, lambda logits, _: logits))  # noqa: B023
        table.add("exact Shapley, late fusion", f"{count} modalities", took, took / 2**count)
    table.notes.append(f"Peak memory {peak_mib():,} MiB.")
    return table


def peak_mib() -> int:
    """Largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


PARTS: dict[str, Callable[[], measuring.Table]] = {
    "encoders": encoders,
    "other_encoders": other_encoders,
    "answers": answers,
    "training": training,
    "retraining": retraining,
    "growth": growth,
}


def main() -> None:
    """Run the parts asked for, each in a fresh process; keep their tables."""
    from benchmarks.__main__ import keep

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fusion", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.here:
        for part in asked.parts or PARTS:
            subprocess.run([sys.executable, "-m", "benchmarks.fusion", part, "--here"], check=True)
        return
    torch.set_num_threads(1)
    table = PARTS[asked.parts[0]]()
    table.notes.append(f"`python -m benchmarks.fusion {asked.parts[0]}`.")
    table.notes.append(f"{datetime.now(UTC):%Y-%m-%d}; {measuring.machine()}.")
    said: Any = table.to_markdown()
    print(said)
    keep(f"fusion_{asked.parts[0]}", said)


if __name__ == "__main__":
    main()
