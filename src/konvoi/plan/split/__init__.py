"""Inside an island: each split is a function `(Parts, ...) -> Parts`, applied in one written order (apply.py)."""
