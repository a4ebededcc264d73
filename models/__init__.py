"""Multimodal models in Flax NNX: loading, preparing prompts, running."""

from models.forward import forward
from models.inputs import Inputs, PromptShape
from models.loading import load, save_weights
from models.model import Model
from models.preparation import prepare
from models.processor import decode

__all__ = ["Inputs", "Model", "PromptShape", "decode", "forward", "load", "prepare", "save_weights"]
