"""Writes calibquant.npz: codes and values of the quantizer of CalibQuant's code, bits 1, 2, 4, 8.

Its equation, in the words of docs/method.md (insuhan/calibquant at 1dcfce8, `quant`): per channel
over the whole segment, lower and upper are s times the least and the greatest element, and the code
is round((x - lower) / scale) clipped to [0, 2^bits - 1], half to even. s is 0.5 for keys and 0.3
for values at 1 bit, 1 otherwise. Their function, run on the same input, gave the same codes and,
within 5e-7 of the range, the same values. Run as

    python tests/goldens/calibquant.py
"""

import pathlib

import numpy as np

CASES = {
    "1bit_keys": (1, 0.5),
    "1bit_values": (1, 0.3),
    "2bit": (2, 1),
    "4bit": (4, 1),
    "8bit": (8, 1),
}


def quantize(x: np.ndarray, bits: int, s: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes and values of x [..., V, H], in float32 as the original."""
    lower = x.min(-2, keepdims=True) * np.float32(s)
    upper = x.max(-2, keepdims=True) * np.float32(s)
    scale = (upper - lower) / np.float32(2**bits - 1)
    codes = np.clip(np.round((x - lower) / scale), 0, 2**bits - 1)
    return codes.astype(np.uint8), lower + scale * codes


def main() -> None:
    """Writes the file beside this one."""
    rng = np.random.default_rng(0)
    # Heavy tails, an offset and a width of its own for each channel: keys look like that.
    x = rng.standard_t(4, (2, 36, 24)) * rng.uniform(0.1, 4, 24) + rng.normal(0, 2, 24)
    x = x.astype(np.float32)
    arrays = {"x": x}
    for name, (bits, s) in CASES.items():
        arrays[f"{name}_codes"], arrays[f"{name}_values"] = quantize(x, bits, s)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
