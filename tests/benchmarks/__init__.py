"""Studies and measurements: what their tables rest on."""
