"""Compiled kernels of fastac: numpy arrays in, numpy arrays out, nothing checked. `fastac` is the checked API."""
