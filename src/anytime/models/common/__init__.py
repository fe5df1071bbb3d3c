"""What several families share: heads, norms per step, delay kernels, additive answers."""
