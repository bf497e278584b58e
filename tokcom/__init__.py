"""TokCom: a VAE turns a chunk of tokens into one vector; flow matching, or a head of a causal transformer, writes the vectors."""

import kit.torchvision_cpu  # noqa: F401  before transformers imports torchvision
