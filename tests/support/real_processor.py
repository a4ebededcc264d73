"""transformers' own processors on PIL, as the ones that prompts prepared here are compared with."""

from os import PathLike
from typing import Any

from tests.support.cohere2_images import cohere2_image_processor
from tests.support.gemma4_images import gemma4_unified_image_processor

__all__ = ["real_processor", "unchecked"]


def unchecked(processor_class: Any) -> Any:
    """The class without its checks: image processors on PIL, and parts that need torch missing."""

    class Unchecked(processor_class):
        def check_argument_for_proper_class(self, name, argument):
            return type(argument)

    return Unchecked


def real_processor(folder: str | PathLike[str], processor_class: Any, **settings: Any) -> Any:
    """The processor of a checkpoint's files; `settings` are further arguments of its class."""
    from transformers import AutoTokenizer
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    without_torchvision = {
        "Cohere2VisionProcessor": cohere2_image_processor,
        "Gemma4UnifiedProcessor": gemma4_unified_image_processor,
    }
    make = without_torchvision.get(processor_class.__name__)
    if make is None:
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    else:
        image_processor = make(folder)
    return unchecked(processor_class)(
        image_processor=image_processor,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        **settings,
    )
