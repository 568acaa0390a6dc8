"""Fine-tunes Vision Transformers over a pipeline of Graphcore IPUs, or with the same program on a GPU or a CPU."""

__version__ = "0.1.0"
