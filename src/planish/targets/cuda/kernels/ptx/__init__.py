"""Kernels written in PTX, for GPUs of compute capability 9.0 (Hopper): what Triton cannot express.

    specialized         products and convolutions of many tiles: warps load, multiply and end tiles
    specialized_norm    the same with a layer norm behind them
    specialized_pair    two convolutions of single pixels, one behind the other
    prompt              products and convolutions of few tiles, ready before their turn
    attention           attention of short sequences, a head's scores in registers at once
    first_conv          convolutions of images of few channels, with the pooling behind them

Each is a folder: `tactics` is the family, `kernel` describes a kernel, `writer` and what is beside
it write its text. `warp_groups` is what all of them share.
"""
