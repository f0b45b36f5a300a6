"""Adapt pretrained language models to a task, and see what it bought."""

__version__ = "0.1.0"
