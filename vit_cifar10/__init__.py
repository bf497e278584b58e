"""A vision transformer from scratch on CIFAR-10: the control experiment, where pixels are pixels."""

import kit.torchvision_cpu  # noqa: F401  before anything here imports torchvision
