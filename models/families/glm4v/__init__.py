"""GLM-4.1V and GLM-4.6V: any grid, a bicubic table, sandwich norms, M-RoPE in pairs."""
