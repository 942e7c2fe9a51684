"""The models of `jaxleak.models` in PyTorch, for the loops that jaxleak is measured beside, and for tests of parity.

Only ever imported where torch is: by the scripts of `bench` that run in processes of their own.
"""
