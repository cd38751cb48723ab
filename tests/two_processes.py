"""A short run of two processes, under torchrun: two_processes.py SHARD FOLDER. Each writes what it ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tiny import TINY
from torch import distributed

from mcodec.model import config as model_config
from mcodec.training.config import TrainConfig
from mcodec.training.loop import Trainer

shard, folder = sys.argv[1:]
model_config.PRESETS["tiny"] = TINY
config = TrainConfig(
    preset="tiny", data=(shard,), out=f"{folder}/run", noise_steps=2, hard_steps=2, frozen_steps=0, batch=2, crop=64,
    optimizer="soap", warmup=1, device="cpu", threads=1, log_every=1,
)  # fmt: skip
# the first one's clock alone says so, and the other must not go on and wait for it
short = Trainer(config.updated(minutes=1e-9 if os.environ["RANK"] == "0" else 0.0))
start = {name: value.clone() for name, value in short.model.state_dict().items()}
short.run()
distributed.barrier()  # the first process has saved
trainer = Trainer(config)
trainer.load(Path(folder) / "run" / "checkpoint.pt")
trainer.run()
batch = trainer.crops.next()
torch.save(
    {"start": start, "model": trainer.model.state_dict(), "batch": batch, "steps": [short.step, trainer.step]},
    f"{folder}/{trainer.rank}.pt",
)
distributed.destroy_process_group()
