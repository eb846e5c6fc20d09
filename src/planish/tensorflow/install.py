"""Puts Planish behind the names under which TensorFlow still ships TF-TRT.

After ``planish.tensorflow.install()`` code that imports
``tensorflow.python.compiler.tensorrt.trt_convert`` or calls ``tf.experimental.tensorrt.Converter``
runs unchanged.
"""

from __future__ import annotations

from typing import Any

from planish.frontends.tensorflow.model import tensorflow

_replaced: list[tuple[Any, str, Any]] = []
_ABSENT = object()


def install() -> None:
    """Replaces TF-TRT's converters in TensorFlow's modules by ours; once is enough."""
    from planish.tensorflow import trt_convert

    if _replaced:
        return
    for module in _modules():
        for name in trt_convert.__all__:
            _replace(module, name, getattr(trt_convert, name))
    namespace = getattr(tensorflow().experimental, "tensorrt", None)
    if namespace is not None:
        _replace(namespace, "Converter", trt_convert.TrtGraphConverterV2)
        _replace(namespace, "ConversionParams", trt_convert.TrtConversionParams)


def uninstall() -> None:
    """Puts TensorFlow's own back."""
    while _replaced:
        owner, name, former = _replaced.pop()
        if former is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, former)


def _modules() -> list[Any]:
    try:
        from tensorflow.python.compiler.tensorrt import trt_convert
    except ImportError:  # versions of TensorFlow that no longer have it
        return []
    return [trt_convert]


def _replace(owner: Any, name: str, value: Any) -> None:
    _replaced.append((owner, name, getattr(owner, name, _ABSENT)))
    setattr(owner, name, value)
