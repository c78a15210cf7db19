"""Programs behind ``python -m pooling``: `demo`, `soak`, `doctor`, `top`. The library itself does not need them."""
