"""Multimodal models in Flax NNX: loading, preparing prompts, running."""

from models.calibrated import attach_tables
from models.calibration import calibrate_scores
from models.chat import chat_prompt
from models.code_calibration import calibrate_codes
from models.fingerprint import fingerprint
from models.forward import forward
from models.generate import GenerateOptions, Generation, generate, stream
from models.inputs import Inputs, PromptShape
from models.loading import load, read_config, save_weights
from models.model import Model
from models.padding import pad_to_multiple
from models.preparation import prepare
from models.processor import decode
from models.sampling import Sampling

__all__ = [
    "GenerateOptions",
    "Generation",
    "Inputs",
    "Model",
    "PromptShape",
    "Sampling",
    "attach_tables",
    "calibrate_codes",
    "calibrate_scores",
    "chat_prompt",
    "decode",
    "fingerprint",
    "forward",
    "generate",
    "load",
    "pad_to_multiple",
    "prepare",
    "read_config",
    "save_weights",
    "stream",
]
