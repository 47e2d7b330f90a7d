"""Names: which functions are linear, which bend, and by what rule; reading of their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SECANT = frozenset(
    "silu gelu tanh sigmoid softplus elu mish hardswish softsign selu celu logsigmoid hardsigmoid "
    "hardtanh relu6 hardshrink softshrink tanhshrink threshold clamp clip sin cos exp expm1 erf "
    "atan arctan sinh asinh log1p square".split()
)
"""Functions of one entry: frozen as the secant through f(0), or by a closed form."""

PIECEWISE = frozenset(
    "relu leaky_relu prelu rrelu abs absolute max_pool1d max_pool2d max_pool3d max_pool2d_with_"
    "indices adaptive_max_pool1d adaptive_max_pool2d amax amin max min clamp_min topk sort "
    "median".split()
)
"""Piecewise linear and homogeneous: autograd already gives the decision at the input."""

NORMS = frozenset("layer_norm rms_norm instance_norm group_norm".split())
ATTENTION = frozenset(
    "softmax softmin scaled_dot_product_attention multi_head_attention_forward log_softmax".split()
)
BIASED = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm baddbmm "
    "addbmm".split()
)
SUMS = frozenset(
    "add sub subtract rsub __add__ __radd__ __sub__ __rsub__ __iadd__ __isub__".split()
)
JOINED = frozenset("cat concat concatenate stack hstack vstack".split())
PRODUCTS = frozenset(
    "mul multiply __mul__ __rmul__ __imul__ matmul __matmul__ __rmatmul__ bmm mm mv dot einsum "
    "div divide true_divide __truediv__ __rtruediv__ __div__ bilinear addcmul addcdiv outer "
    "pow __pow__ __rpow__ lerp".split()
)

LINEAR = frozenset(
    "view reshape flatten unflatten transpose permute t swapaxes movedim squeeze unsqueeze expand "
    "expand_as repeat repeat_interleave contiguous clone to type float double half bfloat16 "
    "type_as __getitem__ index_select gather narrow select slice split chunk unbind tensor_split "
    "roll flip neg negative __neg__ mean sum cumsum avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample "
    "pixel_shuffle pixel_unshuffle unfold fold tril triu diagonal detach size dim numel stride "
    "is_floating_point requires_grad_ __get__ __len__ is_contiguous shape data_ptr copy_ "
    "zeros_like ones_like empty_like full_like new_zeros new_ones new_full new_empty view_as "
    "reshape_as is_complex element_size ndimension get_device isnan isfinite isinf any all eq ne "
    "lt gt le ge argmax argmin __eq__ __ne__ __lt__ __gt__ __le__ __ge__ identity channel_shuffle "
    "mT item tolist __bool__ __float__ __int__ is_nonzero equal allclose "
    "__set__ register_hook retain_grad backward numpy cpu cuda __repr__ __format__ __hash__ "
    "is_same_size untyped_storage storage_offset narrow_copy ravel broadcast_to scatter "
    "index_copy linalg_vecdot trace swapdims moveaxis diag diag_embed rot90 unsafe_chunk "
    "__iter__ __contains__ atleast_1d atleast_2d is_nested is_inference is_quantized "
    "dequantize is_sparse is_meta has_names is_set_to pin_memory share_memory_ type_promotion "
    "result_type".split()
)
"""Linear, or no function of the values at all."""


def flat(values: Any) -> Iterator[Any]:
    """Every entry of nested lists."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from flat(value)
        else:
            yield value


def live(values: Any) -> bool:
    """Whether a tensor among these depends on the input."""
    return any(isinstance(v, Tensor) and v.requires_grad for v in flat(values))


def outside(func: Any, name: str) -> Any:
    """The same function not working in place, so that its result can be another tensor."""
    if not name.endswith("_") or name.startswith("__"):
        return func
    plain = name[:-1]
    found = getattr(torch.Tensor, plain, None) or getattr(torch, plain, None)
    return found or getattr(F, plain, func)


PLACES = {"silu": 1, "hardtanh": 3, "elu": 2, "celu": 2, "selu": 1, "mish": 1, "hardswish": 1,
          "relu6": 1, "hardsigmoid": 1, "threshold": 3}  # fmt: skip
"""Where ``inplace`` stands among the arguments of a function."""


def without_inplace(name: str, rest: Any) -> Any:
    """The arguments behind the first without ``inplace``."""
    place = PLACES.get(name)
    return rest[: place - 1] if place is not None and len(rest) >= place else rest


def bound(func: Any, rest: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name; ``rest`` starts behind the input, or is all of them.

    Works for the functions of ``torch.nn.functional`` that are written in Python.
    """
    known = list(inspect.signature(func).parameters)
    if func is F.multi_head_attention_forward:
        values = dict(zip(known, rest, strict=False)) | kwargs
        defaults = {
            n: p.default for n, p in inspect.signature(func).parameters.items()
            if p.default is not inspect.Parameter.empty
        }  # fmt: skip
        return defaults | values
    return {**dict(zip(known[1:], rest, strict=False)), **kwargs}
