"""Long text handed to a vision-language model as images, measured against plain text."""

import kit.torchvision_cpu  # noqa: F401  before anything here imports torchvision
