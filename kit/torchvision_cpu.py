"""Import this before `torchvision`, or before a `transformers` model that imports it.

torchvision's wheels are built against CUDA torch. Beside a CPU-only torch its operators do not load, and the import fails
because two of them (non-maximum suppression, of no use to image transforms) have no schema. Declaring the schemas cures it.
"""

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")  # kept: the schemas live as long as this object

if not torch.backends.cuda.is_built():
    for _name in ("nms", "qnms"):
        try:
            _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError as error:  # already there: torchvision was imported first and its operators did load
            if "multiple" not in str(error) and "already" not in str(error):
                raise
