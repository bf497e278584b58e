"""What the systems of this repository are measured against, on the same data."""

import kit.torchvision_cpu  # noqa: F401  before transformers imports torchvision
