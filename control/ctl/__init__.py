"""`ocactl`, one module per noun."""
