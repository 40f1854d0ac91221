"""ONNX Runtime, opened the same way everywhere. No torch here: small machines have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion.errors import BundleMismatch


def open_session(model: Path | bytes, *, threads: int = 1) -> Any:
    """An InferenceSession on the CPU.

    threads  of one call; more than one pays only on an idle machine (a worker process has one core)
    Denormals count as zero: they slow convolutions many times over. Raises BundleMismatch for a file that is
    not a model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    held = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(held, options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # ONNX Runtime's own errors share no base class but Exception
        name = "the model" if isinstance(model, bytes) else model.name
        raise BundleMismatch(f"{name} cannot be opened by ONNX Runtime: {fault}") from fault
