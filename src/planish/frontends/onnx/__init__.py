"""The ONNX frontend: `import_model` turns an ONNX model into a `Graph`.

Importing this package imports `onnx`; ``import planish`` does not.
"""

from planish.frontends.onnx.convert import import_model
from planish.frontends.onnx.fallback import OnnxFallback
from planish.frontends.onnx.load import load_model

__all__ = ["OnnxFallback", "import_model", "load_model"]
