"""RLHF alignment of language models: the library that the stages and the annotation app are built on."""

__version__ = "0.1.0"
