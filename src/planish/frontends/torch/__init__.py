"""PyTorch: modules and exported programs, through PyTorch's own exporter to ONNX."""

from planish.frontends.torch.convert import import_model

__all__ = ["import_model"]
