"""Programs behind ``python -m pooling``: `demo`, `soak`, `doctor`. The library itself does not need them."""
