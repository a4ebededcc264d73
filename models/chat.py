"""Questions to prompts, in the words a checkpoint was trained with."""

from models.model import Model
from models.processor import processor_of

__all__ = ["chat_prompt"]


def chat_prompt(model: Model, question: str, *, num_images: int = 1) -> str:
    """The prompt of a first turn that asks `question` about `num_images` pictures.

    Uses the checkpoint's own chat template; checkpoints without one get LLaVA-1.5's,
    `USER: <image>\\nquestion ASSISTANT:`.
    """
    processor = processor_of(model)
    images = [{"type": "image"}] * num_images
    if getattr(processor, "chat_template", None):
        message = {"role": "user", "content": [*images, {"type": "text", "text": question}]}
        return processor.apply_chat_template([message], add_generation_prompt=True)
    return f"USER: {f'{processor.image_token}\n' * num_images}{question} ASSISTANT:"
