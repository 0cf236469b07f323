"""What runs a refinement network: torch, its compiler, ONNX Runtime, OpenVINO or CUDA graphs.

In float32, bfloat16 or int8.

Letters: P patches of S x S px, C output maps.

On a CPU patches and logits are arrays, whatever runs the network; on another device they are tensors there. A backend
is asked for by name and is there, or an error says so: nothing falls back in silence, and what ran is part of every
answer's ``device``. On processors with bfloat16 matrix units (AMX) ``bf16`` is several times as fast.
``int8`` runs the network that a model version holds in that form (:mod:`bpr_service.network.int8`).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import ConfigError
from bpr_service.network.devices import threads, torch_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bpr_service.network.weights import Int8Files

F32 = NDArray[np.float32]
Forward = Callable[[Any], Any]
"""(P, 4, S, S) float32 patches on the device -> (P, C, S, S) float32 logits there: arrays on a CPU, else tensors."""

_CONVERTING = threading.Lock()
"""Tracing a network is not safe in two threads at once."""


def open_backend(
    backend: str,
    precision: str,
    network: nn.Module | Callable[[], nn.Module],
    device: str,
    network_size_px: int,
    int8: Int8Files | None = None,
) -> Forward:
    """The network as one function.

    Args:
        backend: ``eager``, ``compile``, ``onnxruntime``, ``openvino``, or ``graphs`` on a CUDA device.
        precision: ``fp32``, ``bf16`` or ``int8``; what is computed in, inputs and logits are float32.
        network: in evaluation mode, on `device`; or a function that makes it, called where torch is needed.
        device: ``cpu`` or ``cuda:N``.
        network_size_px: S; patches of another size are an error of the exported backends.
        int8: the quantised network, for that precision.

    Raises:
        ConfigError: a backend that is not installed, or that cannot run on this device, in this precision or at
            this size.
    """
    if precision == "int8" and backend != "openvino":
        raise ConfigError(
            f"precision of backend {backend}", expected="fp32 or bf16", got="int8", fix="use backend openvino"
        )
    cuda = device.startswith("cuda")
    if backend == "graphs" and not cuda:
        raise ConfigError("backend graphs", expected="a CUDA device", got=device, fix="use backend openvino")
    if backend in ("openvino", "onnxruntime") and device != "cpu":
        raise ConfigError(f"backend {backend}", expected="device cpu", got=device, fix="use backend graphs")
    if precision == "int8":
        return _openvino_int8(network_size_px, int8)
    torch_for(f"backend {backend} in {precision}")
    from torch import nn

    built = network if isinstance(network, nn.Module) else network()
    if backend == "openvino":
        return from_openvino(openvino_model(built, network_size_px), precision)
    if backend == "onnxruntime":
        if precision != "fp32":
            raise ConfigError(
                "precision of backend onnxruntime", expected="fp32", got=precision, fix="use backend openvino or eager"
            )
        return _onnxruntime(built, network_size_px)
    if cuda and backend != "eager":
        from bpr_service.network.cuda_graphs import graphed

        return graphed(built, precision, device, network_size_px, compiled=backend == "compile")
    run = _compiled(built, precision, device) if backend == "compile" else _eager(built, precision, device)
    return _on_arrays(run) if device == "cpu" else run


def _on_arrays(run: Callable[[Tensor], Tensor]) -> Forward:
    """A function of tensors in the processor's memory as one of arrays; nothing is copied."""
    import torch

    def forward(patches: F32) -> F32:
        with torch.inference_mode():
            out: F32 = run(torch.from_numpy(patches)).numpy()
        return out

    return forward


def batch_sizes(backend: str, device: str, most: int) -> list[int]:
    """The batch sizes that a backend prepares for, each when it first comes, up to `most`; the largest first."""
    if backend == "compile" and not device.startswith("cuda"):
        return [most]  # one shape: what is smaller is filled up
    if backend in ("compile", "graphs"):
        from bpr_service.network.cuda_graphs import SIZES, pieces

        return [size for size in SIZES if size <= most] or [next(pieces(most))[2]]
    return sorted({1, most}, reverse=True)


def label(device: str, backend: str, precision: str) -> str:
    """What an answer says it was computed on: ``cpu``, or ``cpu, openvino bf16``."""
    parts = [part for part, usual in ((backend, "eager"), (precision, "fp32")) if part != usual]
    return ", ".join([device, " ".join(parts)]) if parts else device


def _eager(network: Callable[[Tensor], Tensor], precision: str, device: str) -> Callable[[Tensor], Tensor]:
    import torch

    if precision == "fp32":
        return network

    def forward(patches: Tensor) -> Tensor:
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            logits = network(patches)
        return logits.float()

    return forward


def _compiled(network: nn.Module, precision: str, device: str) -> Callable[[Tensor], Tensor]:
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
    what = {"openvino": "openvino", "onnxruntime": '"bpr-service[onnx]"'}[backend]
    fix = f"install it: pip install {what}"
    return ConfigError(f"backend {backend}", expected=package, got="no such package", fix=fix)


def _openvino_int8(size: int, int8: Int8Files | None) -> Forward:
    if int8 is None:
        raise ConfigError(
            "precision int8", expected="a quantised network", got="none", fix="export one: bpr-train export --calibrate"
        )
    model = import_openvino().Core().read_model(model=int8.xml, weights=int8.bin)
    made_for = model.input(0).partial_shape[2]
    if made_for != size:
        raise ConfigError(
            "network_size_px in int8", expected=str(made_for), got=str(size), fix="the quantised network has one size"
        )
    return from_openvino(model)


def openvino_model(network: nn.Module, network_size_px: int) -> Any:
    """An `openvino.Model` of a network on the CPU, for any number of patches. Raises ConfigError without openvino."""
    import torch

    openvino = import_openvino()
    shape = (-1, 4, network_size_px, network_size_px)
    with _CONVERTING, torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing tells of shape checks that it does not repeat
        return openvino.convert_model(
            network.float(), example_input=torch.zeros(2, *shape[1:]), input=[openvino.PartialShape(shape)]
        )


def import_openvino() -> Any:
    """The package, its telemetry declined. Raises ConfigError where it is not installed."""
    send_nothing()  # before the import: that already reports
    try:
        import openvino
    except ImportError:
        raise _missing("openvino", "openvino") from None
    return openvino


def send_nothing() -> None:
    """Decline the telemetry of OpenVINO's tools in this process.

    Unless it is declined, they write an id to the home folder, and each conversion reports to a server of their makers.
    """
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    except ImportError:
        return  # where the package is missing, nothing is sent
    OptInChecker.check = lambda *_: ConsentCheckResult.DECLINED


def from_openvino(model: Any, precision: str = "fp32") -> Forward:
    """An `openvino.Model` of a network, compiled for `threads`.

    `precision` is of what the model itself leaves open, so a quantised one stays in int8.
    """
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # it would tie the calling thread to a core, the same one in every process
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    turn = threading.Lock()  # refiners of several threads may share it, and it holds one batch

    def forward(patches: F32) -> F32:
        with turn:
            out = request.infer([np.ascontiguousarray(patches)], share_inputs=True)
            return np.array(out[compiled.output(0)], np.float32)

    return forward


def _onnxruntime(network: nn.Module, size: int) -> Forward:
    import torch

    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime", "onnxruntime, onnx and onnxscript") from None
    example = torch.zeros(2, 4, size, size)
    with _CONVERTING, warnings.catch_warnings():
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
    options.intra_op_num_threads = threads()
    # Between two calls its threads would go on spinning, on the cores that cut and put together patches.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def forward(patches: F32) -> F32:
        out: F32 = session.run(None, {"patches": np.ascontiguousarray(patches)})[0]
        return out

    return forward
