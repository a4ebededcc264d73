"""Random chat templates, of the kinds that checkpoints have."""

import random

__all__ = ["draw_template"]

_PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' or 'image' in c %}MARKLINE{% elif 'text' in c %}{{ c.text }}"
    "{% endif %}{% endfor %}{% endif %}"
)
_FIRST = (
    "{% for c in m.content | selectattr('type', 'equalto', 'image') %}MARKLINE{% endfor %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }}{% endfor %}"
)
_USER, _ELSE = "{% if m.role == 'user' %}", "{% else %}"
_END = "{{ eos_token }}{% endif %}{% endfor %}"


def draw_template(rng: random.Random, mark: str) -> str:
    """A template that writes `mark` for each picture."""
    body = rng.choice((_PARTS, _PARTS, _FIRST)).replace("MARK", mark)
    body = body.replace("LINE", rng.choice(("", "", "\n", " ")))
    bos = rng.choice(("", "{{ bos_token }}"))
    system = rng.choice(("", "{% if loop.first and m.role != 'system' %}SYS{% endif %}"))
    end = ""
    match rng.randint(0, 3):
        case 0:  # ChatML
            turn = "<|im_start|>{{ m.role }}\n" + body + "</s>\n{% endfor %}"
            end = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
            system = system.replace("SYS", "<|im_start|>system\nBe brief.</s>\n")
        case 1:  # Mistral's
            turn = f"{_USER}[INST]{body}[/INST]{_ELSE}{body}{_END}"
            system = system.replace("SYS", "[SYS]Be brief.[/SYS]")
        case 2:  # LLaVA's
            turn = f"{_USER}USER: {body} ASSISTANT:{_ELSE} {body}{_END}"
            system = system.replace("SYS", "A chat. ")
        case _:  # SmolVLM's
            turn = "{{ m.role | capitalize }}: " + body + "</s>\n{% endfor %}"
            end = "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
            system = system.replace("SYS", "Be brief.\n")
    return bos + "{% for m in messages %}" + system + turn + end
