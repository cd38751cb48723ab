"""The training loop: three phases, one resumable command."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from bisect import bisect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mcodec import entropy, weights
from mcodec.errors import ModelError, TrainingError
from mcodec.files import atomic, write_bytes
from mcodec.model import Cascade, preset
from mcodec.model.cascade import Trained
from mcodec.model.config import LEVELS, ModelConfig
from mcodec.model.context import QualityTable
from mcodec.model.layers import Exact1x1, Pointwise, Response, Spatial
from mcodec.model.quantizer import Codebooks
from mcodec.model.similarity import SIDE, dissimilarity, library
from mcodec.training import units
from mcodec.training.checkpoint import read as read_checkpoint
from mcodec.training.config import TrainConfig
from mcodec.training.data import Crops, load_pictures, validation_batch
from mcodec.training.replay import Replay

#: What the encoder alone uses; frozen in the last phase.
ENCODER_PARTS = ("analysis.", ".posterior.", ".predict.", ".correct")
#: Levels at which validation is measured.
VALIDATION_LEVELS = (25, 76, 127, 178, 229)

#: PSNRs at which the rate of a validation is compared, or MS-SSIMs in dB.
SCORED = {"mse": (28.0, 31.0, 34.0, 37.0, 40.0), "ms-ssim": (10.0, 13.0, 16.0, 19.0, 22.0)}

#: Crops from which the initial gains are set.
CALIBRATION_CROPS = 32
#: Weight of steps beyond a codebook's radius, in bits. Linear, so that rare extremes do not rule the gradient.
OVERLOAD = 0.1
#: Learning rate of logarithms of factors that whole bodies share.
RESPONSE_RATE = 1e-3
#: A run ends with an error after so many steps in a row without a finite gradient.
MAX_BAD_STEPS = 20

Report = Callable[[dict[str, Any]], None]


def _is_encoder(name: str) -> bool:
    return any(part in name for part in ENCODER_PARTS)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16: a step takes ten times as long on a CPU that only can imitate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.13 does not tell
    return device.type == "cpu" and any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _soap(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise TrainingError(f"soap needs pytorch-optimizer (pip install '.[train]'): {error}") from error
    # bases of the smaller side only: most of the gain for a third of the time (10 % of a step on a CPU)
    optimizer: torch.optim.Optimizer = SOAP(
        groups,
        betas=betas,
        shampoo_beta=0.95,
        precondition_frequency=10,
        max_precondition_dim=256,
        weight_decay=0.0,
    )
    return optimizer


def _start(config: TrainConfig) -> Cascade:
    """A fresh model of the preset, or the released weights that the run starts from."""
    shape = preset(config.preset)
    if not config.init:
        return Cascade(shape)
    model, _ = weights.load(weights.find(config.init))
    # of the coder and the loss alone: weights of any other can go on
    same = replace(model.config, name=shape.name, reach=shape.reach, distortion=shape.distortion)
    if same != shape:
        raise TrainingError(f"weights {config.init} are of {model.config.name}, not of preset {config.preset}")
    model.config = shape
    for module in model.modules():
        if isinstance(module, QualityTable | Codebooks):
            module.thaw()
    units.widen(model)
    return model.train()


class Trainer:
    """State of a run: model, optimizer, EMA, data, step. Multi-GPU runs start one per process (torchrun)."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = self._device()
        self.bf16 = config.bf16 and has_bfloat16(self.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        torch.manual_seed(config.seed)
        self.model = _start(config).to(self.device)
        if config.crop % (multiple := self.model.config.multiple):
            raise TrainingError(f"crop must be a multiple of {multiple}, got {config.crop}")
        if (distortion := self.model.config.distortion) == "ms-ssim":
            library()  # or it is missed after all pictures have been read
            if config.crop < SIDE:
                raise TrainingError(f"MS-SSIM is defined from sides of {SIDE} pixels on: crop is {config.crop}")
        # pointwise and depthwise layers are two to three times faster so, on CPUs as on GPUs
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.gumbel = self.model.config.assignment == "gumbel"
        on_cpu = self.device.type == "cpu"
        coded = on_cpu and entropy.backend() == "c" and self.model.config.prior == "mixture"
        self._assign = self._hard_codes if coded else None
        self._phase = ""
        #: The phase's step as a CUDA graph; several processes, other optimizers and MS-SSIM take plain steps.
        self._replay: Replay[dict[str, Any]] | None = None
        self._replayed = not on_cpu and self.world == 1 and config.optimizer == "adam" and distortion == "mse"
        if not on_cpu:
            # integers of 8 bits are exact in TF32, and 11 bits of a pixel are more than a codec keeps
            torch.backends.cuda.matmul.allow_tf32 = True
        torch.manual_seed(config.seed + 1 + self.rank)
        self.optimizers = self._optimizers()
        self.parameters = dict(self.model.named_parameters())
        self.average = {k: v.detach().clone() for k, v in self.parameters.items()}
        self.crops = Crops(
            load_pictures(config.data, side=max(config.window, config.crop)), config.crop, config.batch,
            config.seed + self.rank, self.device, config.detail,
        )  # fmt: skip
        self.validation: Tensor | None = None
        if config.validation:
            side = max(config.window, config.crop)
            pictures = load_pictures(config.validation, config.validation_pictures, side)
            self.validation = validation_batch(pictures, min(config.crop, 256), len(pictures)).to(self.device)
        self.stopping = False  # set to end the run, resumably, after the step in work
        self.step = 0
        self.bad_steps = torch.zeros((), device=self.device)  # in a row
        #: Cost so far, that of the weights the run starts from included.
        card = weights.read_card(weights.find(config.init)) if config.init else {}
        self.seconds = 3600.0 * card.get("training_hours", 0)
        self.pixels = int(card.get("training_pixels", 0))

    def _device(self) -> torch.device:
        name = self.config.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise TrainingError(f"device must be auto, cpu or cuda, got {name}") from error
        if device.type == "cuda" and not torch.cuda.is_available():  # of a configuration: options are checked
            raise TrainingError("no CUDA device is available; use --device cpu")
        if name == "cuda" and self.world > 1:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return device

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        config, betas = self.config, (0.9, 0.99)
        context = {id(p) for n, p in self.model.named_parameters() if ".context." in n}
        layers = list(self.model.modules())
        coarse = {id(m.weight) for m in layers if isinstance(m, Pointwise | nn.Conv2d)}
        coarse -= {id(m.weight) for m in layers if isinstance(m, Exact1x1 | Spatial)}
        soaped = {id(m.weight) for m in layers if isinstance(m, Pointwise) and config.optimizer == "soap"}
        responses = {id(m.log_factor) for m in layers if isinstance(m, Response)}
        rates = {
            "coarse": config.learning_rate,
            "fine": config.fine_learning_rate or config.learning_rate,
            "context": config.context_learning_rate,
            "response": RESPONSE_RATE,
        }

        def kind(parameter: nn.Parameter) -> str:
            if id(parameter) in responses:
                return "response"
            return "context" if id(parameter) in context else "coarse" if id(parameter) in coarse else "fine"

        def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
            return [
                {"params": members, "lr": rate, "base": rate}
                for name, rate in rates.items()
                if (members := [p for p in parameters if kind(p) == name])
            ]

        parameters = list(self.model.parameters())
        fused = {"fused": True, "capturable": True} if self._replayed else {}
        out: list[torch.optim.Optimizer] = [
            torch.optim.Adam(groups([p for p in parameters if id(p) not in soaped]), betas=betas, **fused)
        ]
        if soaped:
            out.append(_soap(groups([p for p in parameters if id(p) in soaped]), betas))
        return out

    def _generators(self) -> list[torch.device]:
        """Devices whose random numbers a run draws; unless told, torch opens a context on each GPU of the machine."""
        return [self.device] if self.device.type == "cuda" else []

    def _set_rates(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if not self._replayed:
                    group["lr"] = factor * group["base"]
                elif isinstance(group["lr"], Tensor):  # its address is part of the graph
                    group["lr"].fill_(factor * group["base"])
                else:
                    group["lr"] = torch.tensor(factor * group["base"], device=self.device)

    # ---- one step -----------------------------------------------------------------------------------------

    def _levels(self, count: int) -> Tensor:
        """One level from each of `count` equal ranges, in random order: batches differ less than by plain chance."""
        order, place = torch.rand(2, count, generator=self.crops.generator, device=self.device)
        return ((order.argsort() + place) * (LEVELS / count)).floor()

    def _loss(self, out: Trained, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, squared error per picture)."""
        pixels = x.shape[2] * x.shape[3]
        shape = self.model.config
        error = (out.picture - x).square().mean((1, 2, 3))
        distortion = error if shape.distortion == "mse" else dissimilarity(out.picture, x)
        loss = shape.lam(level.float()) * shape.distortion_weight * distortion
        if not self.gumbel:
            beta = self.config.commitment * self.config.beta / math.log(2)
            loss = loss + (out.bits + beta * out.commitment) / pixels
        weight = loss.detach().clamp(min=1e-4) ** -self.config.balance  # BD-rate is of relative changes too
        return (weight * loss).mean() + OVERLOAD * out.overload / (pixels * len(x)), error.detach()

    def train_step(self, quiet: bool = False) -> dict[str, Any]:
        """One optimizer step; returns what a log line holds.

        quiet: returns nothing and does not wait for the device.
        """
        config, phase = self.config, self.config.phase(self.step, self.gumbel)
        if phase != self._phase:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(not (phase == "frozen" and _is_encoder(name)))
            self._phase, self._replay = phase, None
        factor, mode = config.rate(self.step), config.mode(self.step, self.gumbel)
        self._set_rates(factor)
        if self.step == 0:
            self._calibrate(mode)
        if not self._replayed:
            values = self._work(mode)
        else:
            if self._replay is None:
                self._replay = Replay(lambda: self._work(mode), self.device)
            values = self._replay()
        self._update_average()
        self.step += 1
        self.pixels += config.batch * config.crop**2 * self.world
        return {} if quiet else self._row(values, phase, factor)

    def _work(self, mode: str) -> dict[str, Any]:
        """Forward and backward of a batch and the optimizers' step; on a GPU without waiting for it."""
        config = self.config
        x, level = self.crops.next(), self._levels(config.batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.model(x, level, mode, assign=self._assign, beta=config.beta)
            loss, error = self._loss(out, x, level)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self._reduce()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        # a step that overflowed is skipped, not spread
        bad = (~norm.isfinite()).float()
        self.bad_steps.copy_((self.bad_steps + 1) * bad)
        for optimizer in self.optimizers:
            if self._replayed:
                optimizer.found_inf = bad  # type: ignore[attr-defined]  # what a gradient scaler sets
                optimizer.step()
            elif not bad:
                optimizer.step()
        return {
            "loss": loss.detach(), "bits": torch.stack([b.mean() for b in out.stage_bits]), "error": error,
            "used": out.used, "norm": norm, "bad": self.bad_steps,
        }  # fmt: skip

    def _row(self, values: dict[str, Any], phase: str, factor: float) -> dict[str, Any]:
        """Numbers of a step as a log line holds them."""
        if int(values["bad"]) >= MAX_BAD_STEPS:
            raise TrainingError(f"gradients are not finite since {MAX_BAD_STEPS} steps or more (step {self.step})")
        stages = [float(bits) / self.config.crop**2 for bits in values["bits"]]
        return {
            "step": self.step,
            "phase": phase,
            "loss": float(values["loss"]),
            "bpp": sum(stages),
            "psnr": float(-10 * values["error"].log10().mean()),
            "stage_bpp": stages,
            "used": [float(share) for share in values["used"]],
            "norm": float(values["norm"]),
            "rate": factor,
        }

    @torch.no_grad()
    def _hard_codes(self, index: int, latents: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
        """Codes by the entropy coder's own law: what a file would hold, several times faster than in torch."""
        book, beta = self.model.stage(index).codebooks, self.config.beta
        assert offset is not None and scale is not None
        prior = book.vectors(offset.detach()), book.vectors(scale.detach())
        coder = entropy.batch_encoder(len(latents), self.device)
        # a step that overflowed is to be skipped (`_work`), and the coder refuses what is not finite
        vectors = book.vectors(latents).nan_to_num()
        codes = coder.choose(self.model.tables(index), *prior, vectors, book.codewords, beta)
        return codes.long().unflatten(2, latents.shape[-2:])

    @torch.no_grad()
    def _calibrate(self, mode: str) -> None:
        """Fit unit sizes, and a fresh model's gains, to pictures of their own, the same in every process."""
        config, device = self.config, self.device
        crops = self.crops.next(CALIBRATION_CROPS, torch.Generator(device).manual_seed(config.seed))

        def run() -> None:
            for level in VALIDATION_LEVELS:
                for part in crops.split(8):
                    self.model(part, torch.full((len(part),), level, device=device), mode)

        with torch.random.fork_rng(self._generators()):
            torch.manual_seed(config.seed)
            if not self.gumbel and not config.init:
                self.model(crops, torch.full((len(crops),), LEVELS - 1.0, device=device), mode, calibrate=True)
            units.normalize(self.model, run, keep=bool(config.init))
        self.average = {k: v.detach().clone() for k, v in self.model.named_parameters()}

    def _reduce(self) -> None:
        if self.world == 1:
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads]) / self.world  # one message, not hundreds
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view(grad.shape))
        if self.gumbel:  # a static prior is a histogram, of each process's own batches so far
            for book in (module for module in self.model.modules() if isinstance(module, Codebooks)):
                dist.all_reduce(book.counts)
                book.counts /= self.world
                book.log_weights.data.copy_((book.counts + 1e-2).log())

    def _agree(self, stop: bool) -> bool:
        """What one process was told or its clock says goes for all, or they would wait for each other for ever."""
        if self.world == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), [self.parameters[name] for name in self.average], 1 - decay)

    # ---- validation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """bpp and PSNR with averaged weights and codes as a file would hold them (rate from the model).

        Trained for MS-SSIM, that too, in dB, and the score is by it.
        """
        if self.validation is None:
            return {}
        mode = self.config.mode(max(0, self.step - 1), self.gumbel)
        current = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        self._set(self.average)
        x, rows, distortion = self.validation, [], self.model.config.distortion
        with torch.random.fork_rng(self._generators()):  # validation must not change the run
            for level in VALIDATION_LEVELS:
                bits, error, unlike = 0.0, 0.0, 0.0
                for part in x.split(4):
                    out = self.model(
                        part, torch.full((len(part),), level, device=self.device), mode, assign=self._assign,
                        beta=self.config.beta,
                    )
                    bits += float(sum(b.sum() for b in out.stage_bits))
                    picture = out.picture.clamp(-0.5, 0.5)
                    error += float((-10 * (picture - part).square().mean((1, 2, 3)).log10()).sum())
                    if distortion == "ms-ssim":
                        unlike += float((-10 * dissimilarity(picture, part).clamp(min=1e-9).log10()).sum())
                rows.append({"level": level, "bpp": bits / x[:, 0].numel(), "psnr": error / len(x)})
                if distortion == "ms-ssim":
                    rows[-1]["ms_ssim"] = unlike / len(x)
            part, middle = x[:4], torch.full((len(x[:4]),), VALIDATION_LEVELS[2], device=self.device)
            dead = units.dead(self.model, lambda: self.model(part, middle, mode, assign=self._assign))
        self._set(current)
        measure = "psnr" if distortion == "mse" else "ms_ssim"
        score = self._score([r[measure] for r in rows], [r["bpp"] for r in rows], SCORED[distortion])
        return {"step": self.step, "validation": rows, "score": score, "dead": dead}

    @staticmethod
    def _score(quality: list[float], bpp: list[float], scored: tuple[float, ...]) -> float:
        """Mean log2 of the rate at `scored`, read off the curve (its end segments go on): -1 where half the bits do."""
        order = sorted(range(len(quality)), key=quality.__getitem__)
        x, y = [quality[i] for i in order], [math.log2(bpp[i] + 1e-9) for i in order]
        places = [min(max(bisect(x, at), 1), len(x) - 1) for at in scored]
        slopes = [(y[i] - y[i - 1]) / max(x[i] - x[i - 1], 1e-6) for i in places]
        return sum(y[i] + k * (at - x[i]) for at, i, k in zip(scored, places, slopes, strict=True)) / len(scored)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(values[name])

    # ---- checkpoints --------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything a resumed run needs, through a temporary file so that a crash leaves the former one."""
        state = {
            "config": self.config.to_dict(),
            "model": self.model.state_dict(),
            "model_config": self.model.config.to_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "pixels": self.pixels,
            "rng": torch.get_rng_state(),
            "crops": self.crops.generator.get_state(),
        }
        with atomic(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Resume from `save`."""
        state = read_checkpoint(path)
        try:
            same = ModelConfig.from_dict(state["model_config"]).distortion == self.model.config.distortion
            self.model.load_state_dict(state["model"])
        except (ModelError, RuntimeError, KeyError, TypeError) as error:
            raise TrainingError(f"checkpoint {path} is not of preset {self.config.preset}") from error
        if not same:  # of shapes that are alike
            raise TrainingError(f"checkpoint {path} is not of preset {self.config.preset}")
        if len(state["optimizers"]) != len(self.optimizers):
            raise TrainingError(f"checkpoint {path} is of another optimizer than {self.config.optimizer}")
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            for group, own in zip(values["param_groups"], optimizer.param_groups, strict=True):
                # those of this configuration and device
                group.update({k: own[k] for k in ("base", "lr", "fused", "capturable") if k in own})
            optimizer.load_state_dict(values)
        self.average = {k: v.to(self.device) for k, v in state["average"].items()}
        self.step, self.seconds, self.pixels = state["step"], state["seconds"], state["pixels"]
        if self.rank == 0:
            torch.set_rng_state(state["rng"])
            try:
                self.crops.generator.set_state(state["crops"])
            except RuntimeError:  # of another kind of device: other crops, from here on
                self.crops.generator.manual_seed(self.step * self.world)
        else:  # the file holds the first process's generators; another must not repeat its crops
            torch.manual_seed(self.step * self.world + self.rank)
            self.crops.generator.manual_seed(self.step * self.world + self.rank)

    def _rewind(self, log: Path) -> None:
        """Drop what a log holds of steps behind the one that the run starts from."""
        if not log.exists():
            return
        kept = []
        for line in log.read_text().splitlines(keepends=True):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a full disk leaves half a line
                if json.loads(line)["step"] <= self.step:
                    kept.append(line)
        write_bytes(log, "".join(kept).encode())

    # ---- the run ------------------------------------------------------------------------------------------

    def run(self, report: Report = lambda row: None) -> None:
        """Train to the end (or for `minutes`), writing log.jsonl and checkpoint.pt into the run's folder."""
        folder = Path(self.config.out)
        checkpoint = folder / "checkpoint.pt"
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "config.json", json.dumps(self.config.to_dict(), indent=1).encode())
        began = last_saved = time.monotonic()
        before = self.seconds
        if self.rank == 0:
            self._rewind(folder / "log.jsonl")
        with (folder / "log.jsonl").open("a") as log:

            def write(row: dict[str, Any]) -> None:
                if row and self.rank == 0:
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                report(row)

            while self.step < self.config.steps:
                # a device that runs ahead of its host is not waited for, but for what the log holds
                logged = (self.step + 1) % self.config.log_every == 0 or self.step + 1 == self.config.steps
                row = self.train_step(quiet=self._replayed and not logged)
                now = time.monotonic()
                self.seconds = before + now - began
                if row:
                    row["seconds"] = round(self.seconds, 1)
                over = bool(self.config.minutes) and now - began > self.config.minutes * 60
                stop = self._agree(over or self.stopping)
                last = stop or self.step == self.config.steps
                if last or self.step % self.config.log_every == 0:
                    write(row)
                elif row:
                    report(row)
                if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                    write(self.validate())
                if self.rank == 0 and (stop or now - last_saved > self.config.checkpoint_minutes * 60):
                    self.save(checkpoint)
                    last_saved = now
                if stop:
                    return
        if self.rank == 0:
            self.save(checkpoint)
