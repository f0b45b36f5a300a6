"""Answers in tokens: decoding, sampling, beam search, stop strings."""
