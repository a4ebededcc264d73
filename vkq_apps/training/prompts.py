"""The one prompt template, that of LLaVA-1.5."""

__all__ = ["ANSWER_PREFIX", "CHAT_TEMPLATE", "IMAGE_TOKEN", "PROMPT_PREFIX", "prompt", "suffix"]

IMAGE_TOKEN = "<image>"
PROMPT_PREFIX = "USER: "
ANSWER_PREFIX = " "
"""The text between a prompt and its answer."""


def suffix(question: str) -> str:
    """The text after the image in a prompt."""
    return f"\n{question} ASSISTANT:"


def prompt(question: str) -> str:
    """The text of a question about one image, up to where the answer begins."""
    return f"{PROMPT_PREFIX}{IMAGE_TOKEN}{suffix(question)}"


CHAT_TEMPLATE = """
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'USER: ' -}}
    {%- if message['content'] is string -%}
      {{- message['content'] -}}
    {%- else -%}
      {%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
      {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
    {%- endif -%}
    {{- ' ' -}}
  {%- else -%}
    {{- 'ASSISTANT: ' -}}
    {%- if message['content'] is string -%}
      {{- message['content'] -}}
    {%- else -%}
      {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
    {%- endif -%}
    {{- eos_token -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
""".strip()  # noqa: E501  # a template's whitespace is part of it
"""The prompt template in Jinja, for `apply_chat_template`."""
