"""A cascade that follows noisy films, against serial networks that start anew on each frame, at equal updates and equal time.

    python benchmarks/watch.py --run runs/iuzzolino2021/cifar10_cpu_cascadedtd_seed0 --out results/iuzzolino2021/watch.json

A film shows `--scenes` test images of the run's data set one after the other, each for `--scene` frames with fresh noise. The
serial network has the weights of the cascade, or those of another run (`--serial`). Times are those of a frame at batch 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

import anytime
from anytime.data.noise import create_noise, frames
from anytime.reporting.evaluation import images_of, trained_on
from anytime.runtime.anew import Watched, compare_with_anew


def films(images: Tensor, labels: Tensor, scenes: int, scene: int, noise: Any, fill: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Films `[scenes * scene, N, C, H, W]` of scenes * N images, and what each frame shows, `[scenes * scene, N]`."""
    made, keys = create_noise(noise, fill), torch.arange(len(images))
    shots = [frames(made, part, key, scene) for part, key in zip(images.chunk(scenes), keys.chunk(scenes), strict=True)]
    return torch.cat(shots), torch.cat([part.expand(scene, -1) for part in labels.chunk(scenes)])


def described(found: Watched) -> str:
    """A line for each number of updates."""
    lines = []
    for row in found.rows:
        text = f"{row.updates} updates a frame, {row.seconds * 1e3:.2f} ms: accuracy {row.accuracy:.1%}"
        for what, gain in (("equal updates", row.equal_updates), ("equal time", row.equal_time)):
            if gain.gain is None:
                text += f"; at {what} the other has no answer"
            else:
                interval = f"{gain.gain:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]"
                text += f"; at {what} {interval} over step {gain.step} of the other, {gain.accuracy:.1%}"
        lines.append(text)
    return "\n".join(lines)


def main() -> None:
    """Prints the comparison and writes it as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--run", required=True, help="run directory of a cascaded network")
    parser.add_argument("--serial", help="run directory of a serial network; default: the weights of the cascade")
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=3, help="images that a film shows")
    parser.add_argument("--scene", type=int, default=9, help="frames that an image is shown")
    parser.add_argument("--noise", default="perlin", help="focus, occlusion, perlin, resolution, translation or rotation")
    parser.add_argument("--updates", type=int, nargs="+", default=[1, 2, 3, 5])
    options = parser.parse_args()
    model: Any = anytime.load(options.run)
    anew: Any = anytime.load(options.serial) if options.serial else anytime.convert(model, "serial_resnet18")
    data, wanted = trained_on(model), options.films * options.scenes
    batches = images_of(data, "test")
    parts = [*islice(batches, -(-wanted // batches.batch_size))]
    images, labels = (torch.cat(each)[:wanted] for each in zip(*parts, strict=True))
    film, shown = films(images, labels, options.scenes, options.scene, options.noise, data.mean)
    place = torch.device(options.device)
    with torch.inference_mode():
        found = compare_with_anew(
            model.to(place), anew.to(place), film.to(place), shown.to(place), options.updates, options.repeats
        )
    print(described(found))
    if options.out is not None:
        facts = {
            "command": harness.command(), "dataset": type(data).__name__, "noise": options.noise, "scenes": options.scenes,
            "scene": options.scene, "run": Path(options.run).name, "serial": options.serial or "the same weights",
            **harness.environment(options.device), "recipe": model.info.recipe,
        }  # fmt: skip
        found.write(options.out, **facts)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
