"""Fine-tune Vision Transformers over a pipeline of Graphcore IPUs, or the same program on a GPU or a CPU."""

__version__ = "0.1.0"
