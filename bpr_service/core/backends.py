"""What runs a refinement network: torch itself, its compiler, ONNX Runtime or OpenVINO; in float32 or bfloat16.

Letters: P patches of S x S px, C output maps.

A backend is asked for by name and is there, or an error says so: nothing falls back in silence, and what ran is part
of every answer's ``device``. On processors with bfloat16 matrix units (AMX) ``bf16`` is several times as fast.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bpr_service.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Forward = Callable[["Tensor"], "Tensor"]
"""(P, 4, S, S) float32 patches on the device -> (P, C, S, S) float32 logits there."""


def open_backend(
    backend: str, precision: str, network: nn.Module, device: torch.device, network_size_px: int
) -> Forward:
    """The network as one function.

    Args:
        backend: ``eager``, ``compile``, ``onnxruntime`` or ``openvino``.
        precision: ``fp32`` or ``bf16``; what is computed in, inputs and logits are float32.
        network: in evaluation mode, on `device`.
        network_size_px: S; patches of another size are an error of the exported backends.

    Raises:
        ConfigError: a backend that is not installed, or that cannot run on this device or in this precision.
    """
    if backend == "eager":
        return _eager(network, precision, device)
    if backend == "compile":
        return _compiled(network, precision, device)
    if device.type != "cpu":
        raise ConfigError(f"backend {backend}", expected="device cpu", got=str(device), fix="use backend eager")
    if backend == "openvino":
        return _openvino(network, precision, network_size_px)
    if precision != "fp32":
        raise ConfigError(
            "precision of backend onnxruntime", expected="fp32", got=precision, fix="use backend openvino or eager"
        )
    return _onnxruntime(network, network_size_px)


def label(device: torch.device | str, backend: str, precision: str) -> str:
    """What an answer says it was computed on: ``cpu``, or ``cpu, openvino bf16``."""
    parts = [part for part, usual in ((backend, "eager"), (precision, "fp32")) if part != usual]
    return ", ".join([str(device), " ".join(parts)]) if parts else str(device)


def _eager(network: Forward, precision: str, device: torch.device) -> Forward:
    import torch

    if precision == "fp32":
        return network

    def forward(patches: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(patches)
        return logits.float()

    return forward


def _compiled(network: nn.Module, precision: str, device: torch.device) -> Forward:
    """torch.compile with one shape: a short batch is filled up, so that nothing is compiled twice."""
    import torch

    run = _eager(torch.compile(network), precision, device)
    largest = 0

    def forward(patches: Tensor) -> Tensor:
        nonlocal largest
        count = patches.shape[0]
        largest = max(largest, count)
        if count < largest:
            filled = patches.new_zeros((largest, *patches.shape[1:])).contiguous(memory_format=torch.channels_last)
            filled[:count] = patches
            patches = filled
        return run(patches)[:count]

    return forward


def _missing(backend: str, package: str) -> ConfigError:
    extra = {"openvino": "openvino", "onnxruntime": "onnx"}[backend]
    return ConfigError(
        f"backend {backend}", expected=package, got="no such package", fix=f'install "bpr-service[{extra}]"'
    )


def _openvino(network: nn.Module, precision: str, size: int) -> Forward:
    return from_openvino(openvino_model(network, size), precision)


def openvino_model(network: nn.Module, network_size_px: int) -> Any:
    """An `openvino.Model` of a network on the CPU, for any number of patches. Raises ConfigError without openvino."""
    import torch

    send_nothing()  # before the import: that already reports
    try:
        import openvino
    except ImportError:
        raise _missing("openvino", "openvino") from None
    shape = (-1, 4, network_size_px, network_size_px)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing tells of shape checks that it does not repeat
        return openvino.convert_model(
            network.float(), example_input=torch.zeros(2, *shape[1:]), input=[openvino.PartialShape(shape)]
        )


def send_nothing() -> None:
    """Decline the telemetry of OpenVINO's tools in this process: unless declined, they write an id to the home
    folder, and each conversion reports to a server of their makers.
    """
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    except ImportError:
        return  # where the package is missing, nothing is sent
    OptInChecker.check = lambda *_: ConsentCheckResult.DECLINED


def from_openvino(model: Any, precision: str = "fp32") -> Forward:
    """An `openvino.Model` of a network, compiled for as many threads as torch uses."""
    import openvino
    import torch

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # it would tie the calling thread to a core, the same one in every process
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def forward(patches: Tensor) -> Tensor:
        out = request.infer([patches.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(out[compiled.output(0)].copy())

    return forward


def _onnxruntime(network: nn.Module, size: int) -> Forward:
    import torch

    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime", "onnxruntime, onnx and onnxscript") from None
    example = torch.zeros(2, 4, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice to its own developers
        program: Any = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["patches"],
            dynamic_shapes=({0: torch.export.Dim("patches", min=1)},),
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def forward(patches: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"patches": patches.contiguous().numpy()})[0])

    return forward
