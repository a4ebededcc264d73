"""PaliGemma 1 and 2: SigLIP, a linear layer, a Gemma decoder whose prompt sees itself both ways."""
