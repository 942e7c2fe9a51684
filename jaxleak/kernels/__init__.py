"""Products that are fast under `vmap`, with kernels of our own on a CPU.

Each function works on every platform; a module that calls a kernel names what stands in for it elsewhere.

conv      convolution, by kernels or as slices and matrix products (`patches`)
dense     the product of a dense layer
outer     a dense layer's weight gradient, not built, and its distance from another
vectors   the sums over vectors that a solver needs
precision  float32 products that stay float32
platform  CPU or accelerator
llvm/     the kernels: made for the shapes at hand, called through XLA's FFI
"""
