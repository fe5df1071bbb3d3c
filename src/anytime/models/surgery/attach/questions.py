"""Functions of torch that ask a tensor something and make no new one."""

from __future__ import annotations

LAYOUT = {"is_contiguous", "stride", "storage_offset"}  # how a tensor lies in memory
HOOKED = {"register_hook", "register_post_accumulate_grad_hook"}
PLAIN = {  # what a tensor is asked for besides its values and sizes
    *("dim", "ndimension", "is_floating_point", "is_complex", "element_size", *LAYOUT),
    *("get_device", "data_ptr", "_assert", "__hash__", "requires_grad_", "_is_view", "_base", "is_set_to", "retain_grad"),
    *("type", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda", "is_mps", "is_xpu", "is_cpu", "is_meta"),
    *("is_quantized", "is_sparse", "is_leaf", "grad", "grad_fn", "names", "itemsize", "is_nested", "_version", "is_neg"),
    *("is_tensor", "result_type", "promote_types", "finfo", "iinfo", "is_grad_enabled", "is_sparse_csr", "is_signed"),
    *("is_conj", "is_pinned", "is_shared", "has_names", *HOOKED, "can_cast"),
}
SHARING = {"numpy", "__array__", "__dlpack__", "untyped_storage", "storage"}  # values that can be written past torch
VALUES = {  # functions that make Python's values of a tensor's
    *("__bool__", "item", "tolist", "__int__", "__float__", "__index__", "__contains__", "is_nonzero", "equal", "allclose"),
    *("__complex__", "__repr__", "__format__", "__reduce_ex__", "__deepcopy__", *SHARING),
}
SIZES = {"nbytes", "__len__", "is_same_size"}  # that no graph can follow
RAGGED = {  # whose sizes depend on values
    *("nonzero", "argwhere", "unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select"),
    *("bincount", "repeat_interleave"),
}
RANDOM = ("rand", "normal", "bernoulli", "multinomial", "poisson", "empty", "uniform", "exponential", "cauchy", "geometric")
SURROUNDINGS = (  # functions of torch that tell in which block code runs
    *("is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled", "get_autocast_dtype"),
    *("get_autocast_gpu_dtype", "get_autocast_cpu_dtype"),
)
