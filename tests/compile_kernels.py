"""Compiles every kernel for a GPU that need not be there: compile_kernels.py [CAPABILITY], 90 by default.

The interpreter, in which tests run without a GPU, takes more than the compiler does. Operations run on tensors of the
CPU; where they would launch a kernel, it is compiled for the types of its arguments instead, and writes nothing.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Any
from unittest import mock

os.environ["MCODEC_KERNELS"] = "triton"
os.environ.pop("TRITON_INTERPRET", None)

import click
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

import mcodec.kernels
from mcodec.bench import kernels as bench
from mcodec.kernels import (
    context_layer,
    float_prior,
    mixture_frequencies,
    pvq_assign,
    rans,
    residual_block,
)

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "i8", torch.uint8: "u8", torch.int16: "i16",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
MODULES = [importlib.import_module(f"mcodec.kernels.{m.name}") for m in pkgutil.iter_modules(mcodec.kernels.__path__)]
TARGET = GPUTarget("cuda", int(sys.argv[1]) if len(sys.argv) > 1 else 90, 32)
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")

done: set[tuple[Any, ...]] = set()


def compiled(kernel: JITFunction[Any], grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """In place of `launch`."""
    options = {name: meta.pop(name) for name in OPTIONS if name in meta}
    values = dict(zip(kernel.arg_names, args, strict=False)) | meta
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature = {}
    for name in kernel.arg_names:
        value = values[name]
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    fixed = {(kernel.arg_names.index(name),): values[name] for name in constants}
    key = kernel.__name__, *signature.values(), *fixed.values(), *options.values()
    if key not in done:
        done.add(key)
        triton.compile(ASTSource(kernel, signature, fixed), target=TARGET, options=options | {"enable_fp_fusion": True})


def main() -> None:
    """All operations of the benchmark, and those that training alone has."""
    cpu = torch.device("cpu")
    for make, _ in bench.OPERATIONS.values():
        make(1, 8, 8, cpu).run()
    tables, offset, scale = bench._prior(1, 64, cpu)
    mixture_frequencies.mixture_rows(tables, offset, scale)
    pvq_assign.pvq_assign(torch.randn(1, 2, 2, 64), torch.randn(2, 49, 2), 1.0)  # of a static prior
    for lanes in (1, 4, 32, 1024):
        words, count = torch.zeros(1, 16, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        streams = rans.RansStreams(words, count, count + lanes, torch.full((1, lanes), rans.LOWEST), count.clone())
        rans.rans_decode(tables, offset, scale, (1, bench.GROUPS, 64), streams)
    codewords = torch.randn(2, 49, 2, requires_grad=True)
    weights, g, i = (torch.randn(s, requires_grad=True) for s in ((2, 49), (1, 2, 2, 64), (1, 2, 2, 64)))
    float_prior.likeliest(codewords.detach(), weights.detach(), g.detach(), i.detach().abs())
    codes = torch.zeros(1, 2, 64, dtype=torch.int64)
    float_prior.mixture_nats(codes, codewords, weights, g, i.abs()).sum().backward()
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    float_prior.noisy_bits(x, x * 1, x.abs() + 1).sum().backward()
    context_layer.Requantize.apply(x, 7, -127, 127).sum().backward()  # type: ignore[no-untyped-call]
    weight, bias = torch.randn(4, 1, 3, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    y = residual_block.affine_depthwise(x, weight, bias, x[:, :, :1, :1], x[:, :, :1, :1])
    y = residual_block.scaled_add(x, y, x[:, :1, :1, :1])
    residual_block.pointwise(y, torch.randn(4, 4, requires_grad=True), bias).sum().backward()
    kernels = {
        value.__name__
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }
    missing = kernels - {str(key[0]) for key in done}
    click.echo(f"{len(done)} variants of {len(kernels)} kernels compiled for {TARGET.arch}")
    if missing:
        sys.exit(f"not launched: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    with mock.patch.object(torch, "empty", torch.zeros), mock.patch.object(torch, "empty_like", torch.zeros_like):
        for module in MODULES:
            for name, value in (("launch", compiled), ("use_triton", lambda device: True)):
                if hasattr(module, name):
                    setattr(module, name, value)
        main()
