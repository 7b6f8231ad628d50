"""Double precision: small initialisation is the whole subject, and products of small layers vanish in float32."""

import jax


def enable_float64() -> None:
    """Turn JAX's float64 on; a configuration flag, which starts no backend."""
    jax.config.update("jax_enable_x64", True)


def float64_is_enabled() -> bool:
    """Whether arrays made now would be float64; no backend is started."""
    return jax.dtypes.canonicalize_dtype("float64") == "float64"
