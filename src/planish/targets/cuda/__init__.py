"""NVIDIA GPUs as a target: generated Triton kernels, cuDNN and cuBLASLt, in one CUDA graph."""
