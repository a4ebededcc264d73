"""PaddleOCR-VL: SigLIP over any grid before ERNIE 4.5, with M-RoPE."""
