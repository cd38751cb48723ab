"""Target modes on a folder of pictures: the worst miss of each, in percent.

    python -m mcodec.bench.targets --images KODAK

Four targets, one per measure; those that no quality reaches are counted apart.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import track

DEFAULTS = ("bytes=40000", "bpp=0.5", "psnr=32", "ms-ssim=0.98")


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--target", "targets", multiple=True, default=DEFAULTS, show_default=True, metavar="MEASURE=VALUE")
@click.option("--model", default=None, help="released name or path of weights")
@click.option("--device", default="auto")
def main(images: Path, targets: tuple[str, ...], model: str | None, device: str) -> None:
    """Print one line per target."""
    import mcodec
    from mcodec.errors import TargetError
    from mcodec.image import read_raster
    from mcodec.rate import Target, encode_to, measure

    codec = mcodec.load(model, device)
    rasters = {path.name: read_raster(path) for path in sorted(images.glob("*.png"))}
    for text in targets:
        name, _, value = text.partition("=")
        target = Target(name, float(value))
        misses: dict[str, float] = {}
        unreachable = []
        for picture, raster in track(rasters.items(), text):
            try:
                data, _ = encode_to(codec, raster, target)
            except TargetError:
                unreachable.append(picture)
                continue
            misses[picture] = 100 * abs(measure(codec, raster, data, name) / target.value - 1)
        worst = max(misses, key=misses.__getitem__, default="-")
        click.echo(
            f"{text}: worst miss {misses.get(worst, 0):.2f} % ({worst}), {len(misses)} reached, "
            f"{len(unreachable)} out of reach"
        )


if __name__ == "__main__":
    main()
