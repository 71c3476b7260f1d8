"""edged: an edge-node daemon that serves WebAssembly functions and gossips them to its peers."""

__version__ = "0.1.0"
