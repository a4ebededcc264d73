"""Multimodal models in Flax NNX: loading, preparing prompts, running.

| folder | holds | begin with |
|---|---|---|
| `sharding` | meshes of devices, arrays on them | `mesh`, `placing` |
| `layers` | parts that towers share: norms, RoPE, MLPs, experts, loops over layers | `layer_scan` |
| `checkpoints` | Hugging Face's files: settings, names, tensors | `hf_settings`, `weights` |
| `text` | text decoders and their settings | `decoder`, `block`, `registry` |
| `vision` | vision towers and projectors | `vit`, `grid_tower`, `projectors` |
| `inputs` | prompts, pictures and clips on their way to `Inputs` | `preparation`, `batch` |
| `families` | what differs between `model_type`s | `base`, `registry`, `internvl` |
| `generation` | prefill, decode loop, sampling | `generate`, `start`, `decode_loop` |
| `calibration` | tables of codes and score maps of a model | `codes`, `scores` |
"""

from models import extras as extras  # first: names what is not installed
from models import summaries as summaries  # registers the short forms of models and answers
from models.attached_tables import attach_tables
from models.calibration.codes import calibrate_codes
from models.calibration.scores import calibrate_scores
from models.generation.forward import forward
from models.generation.generate import Generation, generate, stream
from models.generation.options import GenerateOptions
from models.generation.prefill_image import prefill_image
from models.inputs.batch import Inputs, PromptShape
from models.inputs.clips import Clip
from models.inputs.padding import pad_to_multiple
from models.loading import load, read_config, save_weights
from models.model import Model
from models.model_fingerprint import fingerprint
from models.prompts.chat import chat_prompt
from models.prompts.preparation import prepare, prepare_questions
from models.prompts.processor import decode
from models.sampling import Sampling
from models.sharding.cache_file import load_cache

__all__ = [
    "Clip",
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
    "load_cache",
    "pad_to_multiple",
    "prefill_image",
    "prepare",
    "prepare_questions",
    "read_config",
    "save_weights",
    "stream",
]
