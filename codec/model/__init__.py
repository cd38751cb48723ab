"""Networks: analysis, cascade of quantized stages, prior, synthesis."""

from mcodec.model.cascade import Cascade
from mcodec.model.config import PRESETS, ModelConfig, StageConfig, level_of, preset, quality_of

__all__ = ["PRESETS", "Cascade", "ModelConfig", "StageConfig", "level_of", "preset", "quality_of"]
