"""The encode: jobs, their chunks, and who does them."""
