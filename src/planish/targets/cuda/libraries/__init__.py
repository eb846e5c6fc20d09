"""NVIDIA's libraries of kernels, whose kernels compete with the generated ones in tuning."""
