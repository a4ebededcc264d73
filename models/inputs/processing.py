"""How a family's prompts and pictures become arrays: the part of a processor that differs.

transformers' processor classes are not used: several of them need torch, and what they add to a
tokenizer and an image processor is the text that takes a picture's place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.inputs.clip_processing import ClipProcessing
from models.inputs.from_transformers import from_transformers
from models.inputs.image_settings import check_resized

__all__ = ["Processing"]


class Processing:
    """Base of the families' processing; a family overrides where it differs.

    Attributes:
        image_mark: the text that stands for one picture in a prompt, in this library and for all
            families: prompts may also hold the family's own `placeholder`.
        image_token_setting: the field of processor_config.json, and of the tokenizer, that names
            the image token.
        adds_special_tokens: whether the tokenizer adds its special tokens (BOS) to a prompt.
        shares_pixels: clips lie in the arrays of pictures, in the order of their tokens.
    """

    image_mark = "<image>"
    image_token_setting = "image_token"
    adds_special_tokens = True
    shares_pixels = False

    def clips(self, config: Any) -> ClipProcessing | None:
        """The processing of clips; None where the model takes pictures alone."""
        return None

    def placeholder(self, config: Any, tokenizer: Any) -> str:
        """The text that the checkpoint's own templates write for one picture: its image token."""
        return tokenizer.convert_ids_to_tokens(config.image_token_id)

    def check_tokens(self, tokenizer: Any, *tokens: str) -> None:
        """Raises ValueError where the tokenizer lacks a token that stands beside a picture's."""
        for token in tokens:
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise ValueError(
                    f"the tokenizer has no token {token}, which prompts of this model_type need"
                )

    def picture_text(self, config: Any, tokenizer: Any) -> str:
        """The text that `image_mark` becomes: the placeholder and the tokens around it."""
        return self.placeholder(config, tokenizer)

    def plain_prompt(self, placeholder: str, question: str, num_images: int) -> str:
        """The prompt that asks a question where a checkpoint has no chat template."""
        return f"USER: {f'{placeholder}\n' * num_images}{question} ASSISTANT:"

    def complete(self, prompt: str, placeholder: str, bos: str) -> str:
        """A prompt with what the family's processor adds to it.

        Args:
            prompt: holds a placeholder for each picture.
            placeholder: that text.
            bos: text of the tokenizer's BOS token; "" in a later turn.
        """
        return prompt

    def token_arrays(self, input_ids: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays, beside the mask, that the family's processor makes of tokens [B, T]."""
        return {}

    def load_image_processor(self, folder: Path, config: Any) -> Any:
        """transformers' image processor, on PIL and NumPy.

        Raises:
            Exception: anything that transformers raises for broken files.
        """
        # PIL in every environment: with torchvision installed pictures would come out differently.
        # A checkpoint's own code is refused; without a word on it transformers would ask the user.
        # From its own module: transformers 5.17 demands torchvision for the name at the top.
        module = "transformers.models.auto.image_processing_auto"
        return from_transformers("AutoImageProcessor", module).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )

    def check(self, config: Any, image_processor: Any) -> None:
        """Raises ValueError for impossible image settings, or ones that do not fit the model."""
        raise NotImplementedError

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """Raises ValueError for a picture that cannot be resized as the settings want it."""
        check_resized(image_processor, picture)

    def preprocess(
        self,
        config: Any,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """The pictures of one prompt, at least one.

        Returns:
            The arrays that the model takes, and for each picture the text that its placeholder
            becomes: as many image tokens as it has features, and what goes between them.
        """
        raise NotImplementedError

    def join(self, prompts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of all prompts, at least one, that have pictures or clips."""
        names = dict.fromkeys(name for each in prompts for name in each)
        return {
            name: np.concatenate([each[name] for each in prompts if name in each]) for name in names
        }

    @staticmethod
    def run(image_processor: Any, pictures: Sequence[Any], **options: Any) -> dict[str, np.ndarray]:
        """The output of transformers' image processor."""
        output = image_processor(list(pictures), return_tensors="np", **options)
        arrays = {name: np.asarray(values) for name, values in output.items()}
        # Levels of 8 bits, where the file says that pixels are neither rescaled nor normalized.
        levels = {name: x.astype(np.float32) for name, x in arrays.items() if x.dtype == np.uint8}
        return arrays | levels
