"""Build script: maps the top-level folders to one import package, ``mcodec``."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent

# Folder -> import package. Every folder with an __init__.py must be listed (tests/test_packaging.py checks it).
PACKAGES = {
    "mcodec": "codec",
    "mcodec.entropy": "codec/entropy",
    "mcodec.image": "codec/image",
    "mcodec.model": "codec/model",
    "mcodec.training": "codec/training",
    "mcodec.kernels": "kernels",
    "mcodec.cli": "cli",
    "mcodec.bench": "bench",
    "mcodec.bench.anchors": "bench/anchors",
    "mcodec.bench.report": "bench/report",
    "mcodec.checkpoints": "checkpoints",
}

# Kernels; published for Linux only, and mcodec works without it.
TRITON = "triton>=3.6; sys_platform == 'linux' and platform_machine in 'x86_64 aarch64'"


def version() -> str:
    text = (ROOT / "codec" / "_version.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "([^"]+)"', text)
    if match is None:
        raise RuntimeError("no __version__ in codec/_version.py")
    return match.group(1)


# The benchmark and its peers but CompressAI, whose pins (numpy < 2, torchvision) tests can do without.
BENCH = [
    "bjontegaard>=1.3",
    "matplotlib>=3.8",
    "pillow>=11.3",
    "pillow-heif>=1.0",
    "pillow-jxl-plugin>=1.3",
    "pytorch-msssim>=1.0",
    "ssimulacra2>=0.3",
]

TRAIN = ["matplotlib>=3.8", "pytorch-msssim>=1.0", "pytorch-optimizer>=4"]

# 16 bits, which Pillow cuts to 8.
IMAGES = ["imagecodecs>=2024.9.22", "tifffile>=2024.8.30"]

setup(
    name="mcodec",
    version=version(),
    description="Learned image codec: vector-quantized latents under a conditional Gaussian-mixture prior",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "mcodec": ["py.typed"],
        "mcodec.checkpoints": ["*.safetensors", "*.json"],
        "mcodec.bench.anchors": ["*.json"],
        "mcodec.bench.report": ["*.html"],
    },
    ext_modules=[
        # optional: without a compiler the numpy reference takes over (codec/entropy/coder.py warns).
        Extension(
            "mcodec.entropy._rans",
            ["codec/entropy/_rans.c"],
            depends=["codec/entropy/rans_core.h"],
            extra_compile_args=["-O3"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "pillow>=11",
        "safetensors>=0.5",
        "click>=8.1",
        "rich>=13",
    ],
    extras_require={
        "images": IMAGES,
        "heic": ["pillow-heif>=1.0"],
        "targets": ["pytorch-msssim>=1.0"],
        "ray": ["ray[data]>=2.40"],
        "url": ["fsspec[http]>=2024.6"],
        "train": TRAIN,
        "bench": [*BENCH, "compressai>=1.2.8"],
        "gpu": [TRITON],
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "ruff>=0.9", "mypy>=1.13"),
            *("fsspec>=2024.6", "imageio>=2.31"),
            *(*BENCH, *IMAGES, *TRAIN, TRITON),
        ],
    },
    entry_points={"console_scripts": ["mcodec = mcodec.cli.main:main"]},
)
