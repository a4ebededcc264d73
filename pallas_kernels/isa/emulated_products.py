"""The matrix products of `Operations` in NumPy: fragments of a warp as matrices."""

import ml_dtypes
import numpy as np

from pallas_kernels.isa.emulated_values import EmulatedValues, as_float, as_word

__all__ = ["EmulatedProducts"]


class EmulatedProducts(EmulatedValues):
    """Computes a product for all warps."""

    def mma_b1_k128(self, a, b, c=(0, 0, 0, 0)):
        """See `Operations.mma_b1_k128`."""
        counts = self._accumulators(self._common_bits(a, b))
        return [as_word(x) + as_word(d) for x, d in zip(c, counts, strict=True)]

    def mma_b1_k256(self, a, b, c=(0, 0, 0, 0)):
        """See `Operations.mma_b1_k256`."""
        return self.mma_b1_k128(a[2:], b[1], self.mma_b1_k128(a[:2], b[0], c))

    def mma_u8_s8(self, a, b, c):
        """See `Operations.mma_u8_s8`."""
        return self._multiply_bytes(np.int8, a, b, c)

    def mma_u8_u8(self, a, b, c):
        """See `Operations.mma_u8_u8`."""
        return self._multiply_bytes(np.uint8, a, b, c)

    def _multiply_bytes(self, right_dtype, a, b, c):
        dtypes = (np.uint8,) * 4 + (right_dtype,) * 2
        parts = [  # each [warps, g, 4t + i]; float64 multiplies integers exactly and fast
            self._fragment(x, d).reshape(-1, 8, 16).astype(np.float64)
            for x, d in zip((*a, *b), dtypes, strict=True)
        ]
        left = np.concatenate([np.concatenate(parts[i:4:2], 2) for i in (0, 1)], 1)
        product = left @ np.concatenate(parts[4:], 2).swapaxes(1, 2)
        registers = self._accumulators(product.astype(np.int64).astype(np.uint32))
        return [as_word(x) + d for x, d in zip(c, registers, strict=True)]

    def mma_f16(self, a, b, c):
        """See `Operations.mma_f16`."""
        return self._mma_halves(np.float16, a, b, c)

    def mma_bfloat16(self, a, b, c):
        """See `Operations.mma_bfloat16`."""
        return self._mma_halves(ml_dtypes.bfloat16, a, b, c)

    def _mma_halves(self, dtype, a, b, c):
        halves = [self._halves(word, dtype) for word in (*a, *b)]  # each [warps, g, 2t + i]
        # Words 0 and 2 of A belong to row g, words 1 and 3 to row g + 8.
        left = np.concatenate([np.concatenate(halves[i:4:2], 2) for i in (0, 1)], 1)
        right = np.concatenate(halves[4:], 2)  # [warps, column, k]
        product = np.einsum("wmk,wnk->wmn", left, right)
        registers = self._accumulators(product.astype(np.float32))
        return [as_float(x) + d for x, d in zip(c, registers, strict=True)]

    def _common_bits(self, a, b) -> np.ndarray:
        def fragment(words):  # [warps, rows, 4 words]
            return np.concatenate([self._full(as_word(w)).reshape(-1, 8, 4) for w in words], 1)

        common = fragment(a)[:, :, None] & fragment([b])[:, None]
        return np.bitwise_count(common).sum(-1, dtype=np.uint32)  # [warps, 16, 8]

    def _accumulators(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The four registers of each lane: rows g and g + 8, columns 2t and 2t + 1."""
        parts = matrix.reshape(-1, 2, 8, 4, 2)  # row = 8 half + g, column = 2 t + i
        return [parts[:, half, :, :, i].reshape(-1, 32) for half in (0, 1) for i in (0, 1)]

    def _halves(self, word, dtype) -> np.ndarray:
        """A word of a half-precision fragment as float64 [warps, g, 2t + i]."""
        return self._fragment(word, dtype).reshape(-1, 8, 8).astype(np.float64)

    def _fragment(self, word, dtype) -> np.ndarray:
        return np.ascontiguousarray(self._full(as_word(word))).view(dtype)
