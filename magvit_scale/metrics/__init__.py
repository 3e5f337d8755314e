"""Figures of merit: reconstruction, Frechet distance, tokens. Streaming, so that a set need not fit in memory."""
