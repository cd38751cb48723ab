"""Plots of a run, from its log."""

from __future__ import annotations

import json
from pathlib import Path

from mcodec.errors import TrainingError


def plot_run(folder: Path) -> Path:
    """Draw `log.jsonl` into `plots.png`: loss, bpp and PSNR, bpp per stage, validation curves."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise TrainingError(f"plots need matplotlib (pip install '.[train]'): {error}") from error
    try:
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read the log of {folder}: {error}") from error
    steps = [r for r in rows if "loss" in r]
    checks = [r for r in rows if "validation" in r]
    if not steps:
        raise TrainingError(f"the log of {folder} has no steps yet")
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
    x = [r["step"] for r in steps]
    axes[0, 0].plot(x, _smooth([r["loss"] for r in steps]))
    axes[0, 0].set(title="loss (smoothed)", yscale="log", xlabel="step")
    axes[0, 1].plot(x, _smooth([r["psnr"] for r in steps]), label="PSNR, dB")
    axes[0, 1].set(title="batch PSNR and bpp (smoothed)", xlabel="step")
    second = axes[0, 1].twinx()
    second.plot(x, _smooth([r["bpp"] for r in steps]), color="tab:orange", label="bpp")
    second.set_yscale("log")
    for stage in range(len(steps[-1]["stage_bpp"])):
        values = _smooth([r["stage_bpp"][stage] for r in steps])
        axes[1, 0].plot(x, values, label=f"stage {stage + 1}")
    axes[1, 0].set(title="bpp per stage", yscale="log", xlabel="step")
    axes[1, 0].legend()
    for row in checks[:: -max(1, len(checks) // 6)]:  # from the last one back
        curve = row["validation"]
        axes[1, 1].plot([c["bpp"] for c in curve], [c["psnr"] for c in curve], "o-", label=f"step {row['step']}")
    axes[1, 1].set(title="validation", xlabel="bpp", ylabel="PSNR, dB")
    if checks:
        axes[1, 1].legend()
    path = folder / "plots.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _smooth(values: list[float], decay: float = 0.9) -> list[float]:
    out, mean = [], values[0]
    for value in values:
        mean = decay * mean + (1 - decay) * value
        out.append(mean)
    return out
