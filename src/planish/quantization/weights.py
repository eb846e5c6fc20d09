"""Weights as int8 or codes of FP8, and what becomes of a layer's bias.

Rounding shifts the mean of what a layer gives: every weight's error meets the mean of its input,
and in a depthwise convolution after ReLU6 these few errors do not cancel. Two remedies cost nothing
when the network runs: errors of a filter's taps are made to cancel, and what is left of the shift
on calibration data goes into the bias. On MobileNetV2, weights alone quantized, they take the ratio
of signal to error at the output from 16.6 to 33.4 dB.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
arXiv:1906.04721, section 4.2.
"""

from __future__ import annotations

import numpy as np

from planish.ops.float8 import encode
from planish.ops.saturation import EIGHTS, LARGEST_SUM, largest_sums
from planish.quantization.scheme import power_scale, scale_of

OUTERMOST = 127
"""The outermost level of weights: -128 is not used, so that they are symmetric."""

DEEP = 128
"""Channels of so many weights may lose levels for the sake of faster sums. Where there are fewer,
products take little more time than what becomes of them, and in MobileNetV2 these weights matter
more: with all of them its ratio of signal to error falls from 20.9 to 20.1 dB, without to 20.5.
"""


def quantize_weights(
    weights: np.ndarray, *, keep_sums: bool = False, short: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Weights as symmetric int8, each output channel (the last axis) with a scale of its own.

    Parameters
    ----------
    weights : array of float32
        At least one axis.
    keep_sums : bool
        Whether the sum of a channel's weights counts more than each of them: as many are rounded
        the other way, those nearest to the middle first, as bring the sum of the errors near zero.
    short : bool
        Whether the sums of some products by bytes must fit 16 bits (`ops.saturation`): of four
        where a channel has many weights, else of two. Channels whose weights are too large for that
        get a larger scale, and so fewer levels: a quarter of them where the four largest of a
        channel share a sum; in the median two thirds for four, five sixths for two.

    Returns
    -------
    levels : array of int8
        Of the weights' shape, from -127 to 127.
    scales : array of float32, ``[channels]``
    """
    flat = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
    largest = np.abs(flat).max(axis=0, initial=0.0)
    if short:
        count = 4 if len(flat) >= DEEP and weights.shape[-2] % EIGHTS == 0 else 2
        room = LARGEST_SUM - count / 2  # each is rounded up by half a level at most
        largest = np.maximum(largest, largest_sums(weights, count) * (OUTERMOST / room))
    scales = np.array([scale_of(float(m), OUTERMOST) for m in largest], np.float32)
    exact = flat / scales
    levels = np.rint(exact)
    if keep_sums:
        levels += _turned(exact - levels)
    levels = np.clip(levels, -OUTERMOST, OUTERMOST).astype(np.int8)
    return levels.reshape(weights.shape), scales


def encode_weights(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights as codes of FP8, each output channel (the last axis) with a scale of its own.

    Returns
    -------
    codes : array of int8
        Of the weights' shape.
    scales : array of float32, ``[channels]``
    """
    largest = np.abs(weights).reshape(-1, weights.shape[-1]).max(axis=0, initial=0.0)
    scales = np.array([power_scale(float(m)) for m in largest], np.float32)
    return encode(weights / scales), scales


def mean_shift(
    weights: np.ndarray, levels: np.ndarray, scales: np.ndarray, means: np.ndarray, groups: int
) -> np.ndarray:
    """What the mean of each output channel loses by quantizing the weights.

    Parameters
    ----------
    weights : array of float32, ``[*window, C / groups, K]``
    levels, scales
        As `quantize_weights` gave them; or what codes stand for, and their scales.
    means : array, ``[C]``
        Of the layer's input, by channel.
    groups : int
        Of the convolution.

    Returns
    -------
    array of float32, ``[K]``
        To be added to the bias. Padding counts as if it had the mean as well.
    """
    lost = weights.astype(np.float64) - levels * scales.astype(np.float64)
    depth, filters = weights.shape[-2:]
    by_channel = lost.reshape(-1, depth, groups, filters // groups).sum(axis=0)
    shift = np.einsum("dgk,gd->gk", by_channel, means.reshape(groups, depth))
    return shift.reshape(-1).astype(np.float32)


def _turned(errors: np.ndarray) -> np.ndarray:
    """By column, steps of 1 to take towards the sum of the errors, at the largest of them."""
    surplus = np.rint(errors.sum(axis=0))
    rank = np.argsort(np.argsort(-errors * np.sign(surplus), axis=0), axis=0)
    return np.where(rank < np.abs(surplus), np.sign(surplus), 0.0)
