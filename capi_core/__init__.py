"""The sans-IO core of capi: protocol machines and plain data, no I/O, no clock, no event loop."""

__version__ = "0.1.0"
